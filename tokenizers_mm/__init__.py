"""Image tokenizers: pixels <-> tokens, one interface for training, storing, measuring and generating."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
