"""Finetuning Octo on batches of the pipeline."""
