"""Checkpoints of the original Octo: read, fitted to a model, and written."""
