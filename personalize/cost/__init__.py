"""Time and memory: the dry run and the benchmarks."""
