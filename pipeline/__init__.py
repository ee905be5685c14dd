"""Turns dataset directories into typed, numeric, JAX-ready batches."""
