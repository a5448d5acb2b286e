"""What `load` may be given, told by its name and by what stands in a folder: no tensor is read, nothing heavy imported."""

from __future__ import annotations

from pathlib import Path

from tokenizers_mm.checkpoints.errors import CheckpointError
from tokenizers_mm.networks import TOWERS

__all__ = ["INNER_FOLDERS", "WEIGHTS", "check_source", "is_network"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Where diffusers' pipelines keep their tokenizer.
INNER_FOLDERS = ("vae", "vqvae", "movq")


def is_network(source: str) -> bool:
    """Whether this names a pretrained network of a library, and no file or folder is called that."""
    library, colon, _ = source.partition(":")
    return library in TOWERS and bool(colon) != (library == "lite0") and not Path(source).exists()
