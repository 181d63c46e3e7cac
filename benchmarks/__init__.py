"""Benchmarks: each reports, none asserts."""
