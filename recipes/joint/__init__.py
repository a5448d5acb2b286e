"""The two mechanisms that need tokenizer and generator at once: REPA alignment, effective bits."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
