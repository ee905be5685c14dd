"""Reads checkpoints of the original Octo, fits them to a model, and writes them."""
