"""Pixels: images, sources of batches, loader, captions and labels."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
