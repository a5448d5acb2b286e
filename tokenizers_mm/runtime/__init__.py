"""What every program needs of the machine: device, precision, paths, files written whole, interruption."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
