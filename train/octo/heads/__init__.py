"""The action heads."""
