"""Tokenizers on disk: our own folders, and every public format that `load` reads."""

from tokenizers_mm.checkpoints.errors import CheckpointError
from tokenizers_mm.checkpoints.native import fingerprint, load, save

__all__ = ["CheckpointError", "fingerprint", "load", "save"]
