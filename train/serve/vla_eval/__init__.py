"""The messages of the benchmarks of allenai's vla-eval."""
