"""Public tokenizers, a file a lineage: how its files are recognised and read. `reader` says how to add one."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
