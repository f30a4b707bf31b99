"""Implementations by others and naive ones, which the benchmarks compare with ours."""
