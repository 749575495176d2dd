"""Grad-Prune."""
