"""Input-aware."""
