"""Which source key becomes which feature: proposed, built in, or read from a file."""
