"""Benchmarks: every figure in README and results/ comes from a command here."""
