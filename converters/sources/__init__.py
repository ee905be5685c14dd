"""What a conversion reads: any format that yields typed episodes."""
