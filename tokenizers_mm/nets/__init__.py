"""Networks that tokenizers are made of."""
