"""Commands side by side in processes of their own, which share the cores."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
