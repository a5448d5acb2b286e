"""One shard of a token store: how its three files are written, committed and read.

    NNNNN.safetensors  `codes` uint8 [n, T] (packed rows, see packing) or `latents` bfloat16 [n, N, D]
    NNNNN.parquet      key, caption, label, source, sha256 of the source: one row per image
    NNNNN.json         SHA-256 and size of both files, counts, quarantined images; written last, it is the commit mark

A file appears under its name only when it is whole: temporary name, fsync, rename, fsync of the folder. JSON records
carry their own SHA-256, so no byte can change unseen. Records hold no paths: names follow from the shard's index.

Shape letters: n images of a shard, N positions, D channels, T bytes of a packed row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, bfloat16

from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.store.packing import pack, row_bytes, unpack

__all__ = [
    "Quarantined",
    "Row",
    "Shard",
    "commit",
    "digest",
    "read_record",
    "row_shape",
    "shard_indices",
    "tokens_of",
    "write_record",
]

_COLUMNS = {
    "key": pa.string(),
    "caption": pa.string(),
    "label": pa.int64(),
    "source": pa.string(),
    "sha256": pa.string(),
}


@dataclass(frozen=True)
class Row:
    """What is stored beside one image's tokens; `key` is any unique UTF-8 text and never becomes a file name."""

    key: str
    caption: str | None = None
    label: int | None = None
    source: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Quarantined:
    """An input that was not stored: the stage it failed at and the error."""

    key: str
    source: str
    stage: str
    error: str


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def commit(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent, also when the machine stops; `OSError` says what to do."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        remedy = "shards committed so far are whole: make room and run again to finish"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", str(path)) from error


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Commit a JSON record together with its own SHA-256."""
    commit(path, _seal(record))


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote; `ValueError` where a single byte differs."""
    data = path.read_bytes()
    try:
        record = json.loads(data)["record"]
        whole = isinstance(record, dict) and _seal(record) == data
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: does not match its own SHA-256, so it was changed after it was written")
    return record  # type: ignore[no-any-return]


def _seal(record: Mapping[str, Any]) -> bytes:
    body = json.dumps(record, sort_keys=True)
    return (json.dumps({"record": record, "sha256": digest(body.encode())}, sort_keys=True, indent=1) + "\n").encode()


def shard_indices(folder: Path, suffix: str = "json") -> list[int]:
    """Indices of the shards that have a file of this kind, ascending; those with a `json` are committed."""
    return sorted(
        int(path.stem) for path in folder.glob(f"*.{suffix}") if len(path.stem) >= 5 and path.stem.isdecimal()
    )


class Shard:
    """The three files of shard `index` in a store's folder."""

    def __init__(self, folder: Path, index: int, spec: TokenSpec) -> None:
        self.folder, self.index, self.spec = folder, index, spec
        self._data: Tensor | None = None

    def __str__(self) -> str:
        return str(self.path("json"))

    def path(self, suffix: str) -> Path:
        """File of this shard: safetensors, parquet or json."""
        return self.folder / f"{self.index:05d}.{suffix}"

    def write(self, tokens: Tokens, rows: Sequence[Row], quarantined: Sequence[Quarantined] = ()) -> None:
        """Commit the shard; `tokens` must have been checked against the spec and match `rows` one to one."""
        if tokens.codes_BNS is not None:
            tensors = {"codes": pack(tokens.codes_BNS, self.spec.code_bits)}
        else:
            tensors = {"latents": tokens.data.to("cpu", bfloat16).contiguous()}
        columns = {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in _COLUMNS.items()}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink, compression="zstd")
        files = {"safetensors": save(tensors), "parquet": sink.getvalue().to_pybytes()}
        for suffix, data in files.items():
            commit(self.path(suffix), data)
        record = {
            "index": self.index,
            "encoded": len(rows),
            "quarantined": [asdict(item) for item in quarantined],
            "files": {suffix: {"sha256": digest(data), "bytes": len(data)} for suffix, data in files.items()},
        }
        write_record(self.path("json"), record)

    def record(self) -> dict[str, Any]:
        """The commit record; `ValueError` where it is damaged, or a file is missing or has another size."""
        record = read_record(self.path("json"))
        if record.get("index") != self.index or set(record.get("files", ())) != {"safetensors", "parquet"}:
            raise ValueError(f"{self}: is not the record of shard {self.index}")
        for suffix, facts in record["files"].items():
            path = self.path(suffix)
            if not path.is_file():
                raise ValueError(f"{path}: is missing though {self} says it was committed")
            if path.stat().st_size != facts["bytes"]:
                raise ValueError(f"{path}: has {path.stat().st_size} bytes, {facts['bytes']} were committed")
        return record

    def rows(self, columns: Sequence[str] = tuple(_COLUMNS)) -> dict[str, list[Any]]:
        """Columns of the Parquet file as lists."""
        try:
            table = pq.ParquetFile(self.path("parquet"), memory_map=True).read(list(columns))
            return {name: table.column(name).to_pylist() for name in columns}
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(f"{self.path('parquet')}: cannot be read ({error})") from error

    @property
    def data(self) -> Tensor:
        """Stored rows, memory-mapped: uint8 [n, T] packed codes, or bfloat16 [n, N, D] latents."""
        if self._data is None:
            name = "codes" if self.spec.discrete else "latents"
            try:
                with safe_open(self.path("safetensors"), framework="pt") as file:
                    data: Tensor = file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.path('safetensors')}: cannot be read ({error})") from error
            if tuple(data.shape[1:]) != row_shape(self.spec):
                raise ValueError(f"{self.path('safetensors')}: rows are {tuple(data.shape[1:])}, not of {self.spec}")
            self._data = data
        return self._data


def row_shape(spec: TokenSpec) -> tuple[int, ...]:
    """Shape of one stored image: (T,) bytes of packed codes, or (N, D) latents."""
    return (row_bytes(spec.length, spec.code_bits),) if spec.discrete else (spec.length, spec.dim)


def tokens_of(data: Tensor, spec: TokenSpec) -> Tokens:
    """Stored rows back to tokens: int64 codes, or float32 latents."""
    if spec.discrete:
        return Tokens(codes_BNS=unpack(data, spec.length, spec.code_bits), grid=spec.grid)
    return Tokens(latents_BND=data.float(), grid=spec.grid)
