"""Transforms of a batch: what is changed between reading it and giving it to the model."""
