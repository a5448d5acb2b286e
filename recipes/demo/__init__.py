"""The demonstration: jobs that train and measure, and the page that shows them."""

from tokenizers_mm.lazy import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
