"""Tokenizers on disk: our own folders, diffusers' folders, and the files of every public family in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers_mm.lazy import face

if TYPE_CHECKING:
    from tokenizers_mm.checkpoints.diffusers import from_diffusers, to_diffusers
    from tokenizers_mm.checkpoints.errors import CheckpointError
    from tokenizers_mm.checkpoints.families import FAMILIES
    from tokenizers_mm.checkpoints.family import Family
    from tokenizers_mm.checkpoints.loading import load
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
_HOMES = {
    "FAMILIES": "tokenizers_mm.checkpoints.families",
    "CheckpointError": "tokenizers_mm.checkpoints.errors",
    "Family": "tokenizers_mm.checkpoints.family",
    "Origin": "tokenizers_mm.checkpoints.origin",
    "fingerprint": "tokenizers_mm.checkpoints.native",
    "from_diffusers": "tokenizers_mm.checkpoints.diffusers",
    "load": "tokenizers_mm.checkpoints.loading",
    "save": "tokenizers_mm.checkpoints.native",
    "to_diffusers": "tokenizers_mm.checkpoints.diffusers",
}
if not TYPE_CHECKING:  # or type checkers would take every name for one of ours
    __getattr__, __dir__ = face(__name__, _HOMES)
