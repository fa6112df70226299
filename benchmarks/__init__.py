"""Cost in seconds and bytes; each file is a program: python -m benchmarks.<name>."""
