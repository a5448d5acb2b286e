"""Measurement: reconstruction, Frechet distances, semantics, information, each with the protocol it was made by."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
