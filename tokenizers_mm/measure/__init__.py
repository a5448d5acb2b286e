"""Numbers about tokenizers and generators, each with its protocol."""
