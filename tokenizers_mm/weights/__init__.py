"""Weight files of others, read safely: formats, tensors, hashes, provenance, names of networks, errors."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
