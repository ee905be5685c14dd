"""From the indices of samples to checked, JAX-ready batches."""
