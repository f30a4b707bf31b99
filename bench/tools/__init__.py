"""Tools of the benchmarks; each runs as `python -m tools.NAME` in bench/."""
