"""What the commands do: train, evaluate, encode, sample, caption, convert, write data sets."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
