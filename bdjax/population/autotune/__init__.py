"""Which execution is fastest on this machine: candidates, measured within a budget, and cached."""
