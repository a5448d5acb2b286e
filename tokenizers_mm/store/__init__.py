"""Tokens on disk: encode, shards, manifest, verification, and the data set that reads them."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
