"""Measures the loader, and compares it with reading and decoding alone."""
