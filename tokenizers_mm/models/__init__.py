"""What is a tokenizer: autoencoder, fused pair, tiles; and the semantic head."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
