"""SSBA."""
