"""Checkpoints: written, read, checked, and exported."""
