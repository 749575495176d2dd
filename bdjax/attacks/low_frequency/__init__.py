"""LF, the low-frequency attack."""
