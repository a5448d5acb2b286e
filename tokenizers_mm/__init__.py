"""Image tokenizers: pixels <-> tokens, one interface for training, storing, measuring and generating."""

from tokenizers_mm.api import Batch, Generator, Tokenizer, Tokens, TokenSpec
from tokenizers_mm.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder
from tokenizers_mm.checkpoints import fingerprint, from_diffusers, load, save, to_diffusers
from tokenizers_mm.fused import Fused
from tokenizers_mm.nets.fast import optimize
from tokenizers_mm.semantics import Semantics, semantics_of
from tokenizers_mm.tiled import Tiled, tiling_error
from tokenizers_mm.towers import Tower, TowerConfig, build_tower

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Batch",
    "Fused",
    "Generator",
    "Semantics",
    "Tiled",
    "TokenSpec",
    "Tokenizer",
    "Tokens",
    "Tower",
    "TowerConfig",
    "build_autoencoder",
    "build_tower",
    "fingerprint",
    "from_diffusers",
    "load",
    "optimize",
    "save",
    "semantics_of",
    "tiling_error",
    "to_diffusers",
]
