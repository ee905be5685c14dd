"""The LIBERO simulator, for policies and for collecting demonstrations."""
