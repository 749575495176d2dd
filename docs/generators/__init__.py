"""What makes the pages of the documentation that are not written by hand. None of them is committed."""
