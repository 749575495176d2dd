"""BadNets."""
