"""Every lineage of public tokenizers that is read here, and the rows of all of them."""

from __future__ import annotations

from tokenizers_mm.checkpoints.families import (
    causal,
    dc_ae,
    emu3,
    infinity,
    ldm,
    llamagen,
    maskgit,
    open_magvit2,
    showo,
    var,
    vqgan,
)
from tokenizers_mm.checkpoints.families.diffusers_class import DiffusersClass
from tokenizers_mm.checkpoints.families.reader import Family, Reader
from tokenizers_mm.weights import CheckpointError

_FILES = (ldm, vqgan, llamagen, var, infinity, open_magvit2, showo, maskgit, dc_ae, causal, emu3)
READERS: tuple[Reader, ...] = tuple(file.READER for file in _FILES)


def known_families() -> list[Family]:
    """Every row, in the order of the readers."""
    return [row for reader in READERS for row in reader.families]


def check_family(name: str, where: object) -> None:
    """Raise `CheckpointError` for a name that is not in the table.

    where  what was to be read as that family
    """
    names = sorted(row.name for row in known_families())
    if name not in names:
        raise CheckpointError(f"{where}: family={name!r} is unknown; expected one of {', '.join(names)}")


def readers() -> tuple[Reader, ...]:
    """Every reader, in the order in which a file is tried."""
    return READERS


def diffusers_classes() -> list[tuple[Reader, DiffusersClass]]:
    """Every class of diffusers that is read or written here, with its reader."""
    return [(reader, known) for reader in READERS for known in reader.diffusers]
