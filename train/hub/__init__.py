"""Policies on the Hugging Face hub: what is pushed of a run, its card, and how it is fetched."""
