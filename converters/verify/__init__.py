"""Whether a dataset is what its files and its source say."""
