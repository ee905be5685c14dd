"""Dataset directories on the Hugging Face hub: pulled, cached, and pushed with a card."""
