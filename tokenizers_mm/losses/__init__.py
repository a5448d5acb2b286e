"""Losses as plain functions and small modules; none knows the training loop."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
