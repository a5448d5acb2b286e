"""Tokenizers on disk: our own folders, diffusers' folders, and the files of every public family in the table."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
