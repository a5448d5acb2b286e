"""Whole systems: choices, no new mechanisms; and the programs and console script that run them."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
