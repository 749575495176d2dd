"""Pickles, read without running anything that they hold: arrays of NumPy and checkpoints of PyTorch."""
