"""Grids of experiments: what to run (plan), running and resuming it (run), and what is kept of it (store)."""
