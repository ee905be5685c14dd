"""Writes, reads, checks and exports checkpoints."""
