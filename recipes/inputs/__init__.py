"""What programs are given by name: tokenizers, images, and what a run has left."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
