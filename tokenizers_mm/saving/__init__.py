"""Our own folder format: save, load, fingerprint, model card, hub."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
