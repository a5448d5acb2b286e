"""Networks that tokenizers are made of: image -> features, features -> image."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
