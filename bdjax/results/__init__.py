"""What is read from records, without drawing it: members, pooled rows, verdicts, pruning curves, citations."""
