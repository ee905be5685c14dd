"""The figures of one accelerator, in one command: `python -m benchmarks.accelerator`."""
