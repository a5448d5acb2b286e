"""The manifest of a token store: which tokenizer made it, from what; and the lock that keeps writers apart.

Shape letters: V vocabulary, D channels.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_mm.api import Quantizer, TokenSpec
from tokenizers_mm.store.code_files import CODE_FILES, read_codebook, read_quantizer, write_codebook, write_quantizer
from tokenizers_mm.store.folder import MANIFEST, require_store
from tokenizers_mm.store.shards import read_record, write_record

__all__ = ["Inputs", "Manifest", "StoreMismatch", "lock"]

_FORMAT = 1
_LOCK = ".lock"


class StoreMismatch(ValueError):
    """A store was made by another tokenizer, preprocessing or list of inputs than the one at hand."""


@dataclass(frozen=True)
class Inputs:
    """What a finished store covers: how many inputs, in shards of how many, and the SHA-256 of their list."""

    count: int
    shard_size: int
    sha256: str

    @property
    def shards(self) -> int:
        """Shards of a finished store."""
        return -(-self.count // self.shard_size)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Identity of a store: two stores with equal manifests hold tokens of the same kind.

    preprocess  JSON of `Preprocess`;  codebook  SHA-256 of the file with the codebook table, or None
    quantizer   options of the tokenizer's quantizer and SHA-256 of the file with its tensors, or None
    versions    libraries that wrote it; they are recorded, not compared
    """

    spec: TokenSpec
    fingerprint: str
    preprocess: str
    inputs: Inputs | None = None
    codebook: str | None = None
    quantizer: dict[str, Any] | None = None
    versions: dict[str, str] | None = None

    @staticmethod
    def present(folder: Path) -> bool:
        """True where the folder holds a store; `ValueError` where it holds something else."""
        if (folder / MANIFEST).is_file():
            return True
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: is a file; give a folder for the token store")
        # What a writer leaves that was stopped before its manifest was committed.
        started = {_LOCK, *CODE_FILES}
        foreign = [p.name for p in folder.glob("*") if p.name not in started and not p.name.endswith(".tmp")]
        if foreign:
            raise ValueError(
                f"{folder}: holds {len(foreign)} other files ({foreign[0]!r}) and no {MANIFEST}; "
                "give a new or empty folder for the token store"
            )
        return False

    def create(self, folder: Path, codebook_VD: Tensor | None = None, quantizer: Quantizer | None = None) -> None:
        """Write the codebook table and the quantizer, then the manifest."""
        codebook = None if codebook_VD is None else write_codebook(folder, self.spec, codebook_VD)
        kept = {} if quantizer is None else {"quantizer": write_quantizer(folder, self.spec, quantizer)}
        names = ("tokenizers-mm", "torch", "safetensors", "pyarrow", "pillow", "numpy")
        record = {
            "format": _FORMAT,
            "spec": json.loads(self.spec.to_json()),
            "fingerprint": self.fingerprint,
            "preprocess": self.preprocess,
            "inputs": asdict(self.inputs) if self.inputs else None,
            "codebook": codebook,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        }
        write_record(folder / MANIFEST, record | kept)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check a store's manifest; `ValueError` where there is none or it is damaged."""
        path = require_store(folder) / MANIFEST
        record = read_record(path)
        if record.pop("format", None) != _FORMAT:
            raise ValueError(f"{path}: is of another format version; this library reads version {_FORMAT}")
        record["spec"] = TokenSpec.from_json(json.dumps(record["spec"]))
        record["inputs"] = Inputs(**record["inputs"]) if record["inputs"] else None
        unknown = sorted(record.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise ValueError(f"{path}: holds {', '.join(unknown)}, which this version does not know: use a newer one")
        return cls(**record)

    def refuse_other(self, folder: Path, other: Manifest) -> None:
        """Raise `StoreMismatch`, naming both sides, unless `other` describes the same store."""
        remedy = "encode into a new folder"
        for name in ("fingerprint", "spec", "preprocess", "inputs"):
            there, here = getattr(self, name), getattr(other, name)
            if not (there.same_tokens(here) if isinstance(there, TokenSpec) else there == here):
                what = "tokenizer fingerprint" if name == "fingerprint" else name
                prints = "" if name == "fingerprint" else f" (fingerprints: {self.fingerprint}, {other.fingerprint})"
                if name == "inputs" and there and here and here == replace(there, sha256=here.sha256):
                    remedy = f"other files, captions or labels (`captions` says where they are looked for); {remedy}"
                raise StoreMismatch(f"{folder}: the store has {what} {there}, this run has {here}{prints}; {remedy}")

    def read_codebook(self, folder: Path) -> Tensor | None:
        """Vectors of all codes [V, D], or None; `ValueError` where the file is missing or differs."""
        return None if self.codebook is None else read_codebook(folder, self.codebook)

    def read_quantizer(self, folder: Path) -> Quantizer | None:
        """The tokenizer's quantizer, or None; `ValueError` where the file is missing or differs."""
        return None if self.quantizer is None else read_quantizer(folder, self.quantizer)


def lock(folder: Path) -> int:
    """Take the folder's lock and return its file descriptor; closing that, or the end of the process, releases it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ValueError(f"{folder}: process {owner} is writing this store; wait for it or encode elsewhere") from error
    with contextlib.suppress(OSError):  # the number only serves the message above; a full disk is reported later
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    return descriptor
