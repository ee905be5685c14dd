"""Converts RLDS directories to dataset directories."""
