"""Methods in Python files of the user's own: found, imported apart from each other, hashed, and checked."""
