"""Images in, tokens on disk."""
