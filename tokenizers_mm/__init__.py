"""Image tokenizers: pixels <-> tokens, one interface for training, storing, measuring and generating."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers_mm.lazy import face

if TYPE_CHECKING:
    from tokenizers_mm.api import Batch, Generator, Tokenizer, Tokens, TokenSpec
    from tokenizers_mm.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder
    from tokenizers_mm.checkpoints.diffusers import from_diffusers, to_diffusers
    from tokenizers_mm.checkpoints.loading import load
    from tokenizers_mm.checkpoints.native import fingerprint, save
    from tokenizers_mm.data.encode import encode_folder
    from tokenizers_mm.data.store import TokenDataset
    from tokenizers_mm.data.verify import verify
    from tokenizers_mm.fused import Fused
    from tokenizers_mm.measure.evaluate import evaluate
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
    "TokenDataset",
    "TokenSpec",
    "Tokenizer",
    "Tokens",
    "Tower",
    "TowerConfig",
    "build_autoencoder",
    "build_tower",
    "encode_folder",
    "evaluate",
    "fingerprint",
    "from_diffusers",
    "load",
    "optimize",
    "save",
    "semantics_of",
    "tiling_error",
    "to_diffusers",
    "verify",
]
_HOMES = {
    "Autoencoder": "tokenizers_mm.autoencoder",
    "AutoencoderConfig": "tokenizers_mm.autoencoder",
    "Batch": "tokenizers_mm.api",
    "Fused": "tokenizers_mm.fused",
    "Generator": "tokenizers_mm.api",
    "Semantics": "tokenizers_mm.semantics",
    "Tiled": "tokenizers_mm.tiled",
    "TokenDataset": "tokenizers_mm.data.store",
    "TokenSpec": "tokenizers_mm.api",
    "Tokenizer": "tokenizers_mm.api",
    "Tokens": "tokenizers_mm.api",
    "Tower": "tokenizers_mm.towers",
    "TowerConfig": "tokenizers_mm.towers",
    "build_autoencoder": "tokenizers_mm.autoencoder",
    "build_tower": "tokenizers_mm.towers",
    "encode_folder": "tokenizers_mm.data.encode",
    "evaluate": "tokenizers_mm.measure.evaluate",
    "fingerprint": "tokenizers_mm.checkpoints.native",
    "from_diffusers": "tokenizers_mm.checkpoints.diffusers",
    "load": "tokenizers_mm.checkpoints.loading",
    "optimize": "tokenizers_mm.nets.fast",
    "save": "tokenizers_mm.checkpoints.native",
    "semantics_of": "tokenizers_mm.semantics",
    "tiling_error": "tokenizers_mm.tiled",
    "to_diffusers": "tokenizers_mm.checkpoints.diffusers",
    "verify": "tokenizers_mm.data.verify",
}
if not TYPE_CHECKING:  # or type checkers would take every name for one of ours
    __getattr__, __dir__ = face(__name__, _HOMES)
