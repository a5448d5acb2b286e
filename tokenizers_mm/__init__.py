"""Image tokenizers: pixels <-> tokens, one interface for training, storing, measuring and generating."""

from tokenizers_mm.api import Batch, Generator, Tokenizer, Tokens, TokenSpec
from tokenizers_mm.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder
from tokenizers_mm.checkpoints import fingerprint, from_diffusers, load, save, to_diffusers
from tokenizers_mm.nets.fast import optimize
from tokenizers_mm.tiled import Tiled, tiling_error

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Batch",
    "Generator",
    "Tiled",
    "TokenSpec",
    "Tokenizer",
    "Tokens",
    "build_autoencoder",
    "fingerprint",
    "from_diffusers",
    "load",
    "optimize",
    "save",
    "tiling_error",
    "to_diffusers",
]
