"""Demonstrations of a scripted expert in the LIBERO simulator, as RLDS and as a dataset."""
