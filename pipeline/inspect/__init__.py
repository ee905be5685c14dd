"""What a dataset directory holds, for a person (text, a picture) and for a program (JSON)."""
