"""Policies exported to one file that runs without this package: its writer, and the code in it."""
