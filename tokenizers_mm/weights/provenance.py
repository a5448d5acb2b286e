"""Where a tokenizer's weights come from, kept beside its configuration; no part of its identity."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """Source and licences of public weights.

    family           name of the kind of checkpoint, e.g. "flux-vae"
    source           hub repository, file or object that they were read from
    commit           of the repository; None where there is none
    licence_code, licence_weights  as SPDX or hub identifiers where they have one, in words where not
    ignored          patterns of keys in the file that the tokenizer does not need
    """

    family: str
    source: str
    commit: str | None
    licence_code: str
    licence_weights: str
    ignored: tuple[str, ...] = ()
