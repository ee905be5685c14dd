"""Repositories on the Hugging Face hub: their addresses, and transfers of their files."""
