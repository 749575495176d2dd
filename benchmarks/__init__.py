"""Benchmarks: every figure in README, docs/ and results/ comes from a command here."""
