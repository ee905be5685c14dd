"""How batches are read from a store: threads that read samples, and what they need to keep up."""
