"""Parts of a config: classes of the library, or of a user's own file."""
