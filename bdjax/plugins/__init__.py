"""Methods in Python files of the user's own: found, imported in isolation from each other, hashed and checked."""
