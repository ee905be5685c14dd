"""From dataset directories to typed, numeric, JAX-ready batches."""
