"""Computed token columns: from the images of a dataset to VGGT's tokens of them, once, offline."""
