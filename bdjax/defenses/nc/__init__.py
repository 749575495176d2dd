"""Neural Cleanse."""
