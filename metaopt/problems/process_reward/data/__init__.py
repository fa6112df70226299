"""Chains of steps: worlds, files and benchmarks."""
