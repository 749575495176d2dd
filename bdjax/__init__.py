"""Backdoor attacks and defenses on image classifiers, run as populations of members on one accelerator."""

__version__ = "0.1.0"
