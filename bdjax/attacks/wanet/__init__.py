"""WaNet."""
