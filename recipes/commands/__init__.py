"""The commands of `tmm`, a file each: options, and what is refused at once; the work is that of the programs."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
