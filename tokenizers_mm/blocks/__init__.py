"""Parts of transformers and of rectified flows, for nets, heads, text encoders and generators: torch alone."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
