"""One HTML page from plain data: text, tables, charts, pictures."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
