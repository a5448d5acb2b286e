"""Tokenizers on disk: our own folders, diffusers' folders, and the files of every public family in the table."""

from tokenizers_mm.checkpoints.diffusers import from_diffusers, to_diffusers
from tokenizers_mm.checkpoints.errors import CheckpointError
from tokenizers_mm.checkpoints.families import FAMILIES
from tokenizers_mm.checkpoints.family import Family
from tokenizers_mm.checkpoints.load import load
from tokenizers_mm.checkpoints.native import fingerprint, save
from tokenizers_mm.checkpoints.origin import Origin

__all__ = [
    "FAMILIES",
    "CheckpointError",
    "Family",
    "Origin",
    "fingerprint",
    "from_diffusers",
    "load",
    "save",
    "to_diffusers",
]
