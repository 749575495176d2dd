"""BTI-DBF."""
