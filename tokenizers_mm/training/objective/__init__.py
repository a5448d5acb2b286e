"""The objective that tokenizers are trained with: reconstruction, alignment, adversary, in one module."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
