"""Judges of what was learned: figures with targets, ceilings and controls."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
