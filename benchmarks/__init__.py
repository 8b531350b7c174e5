"""Benchmarks: `python -m benchmarks.<name>` runs the plain way and ours side by side (benchmarks/README.md)."""
