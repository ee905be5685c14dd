"""Shows the contents of a dataset directory as text, as a figure or as JSON."""
