"""A token store: immutable shards in one folder, under a manifest that says which tokenizer made them.

    manifest.json         TokenSpec, tokenizer fingerprint, preprocessing, inputs, versions (see manifest)
    codebook.safetensors, quantizer.safetensors  the vectors of the codes, where they are known (see code_files)
    NNNNN.*               the shards: tokens, rows, commit record (see shards)

    StoreWriter   one at a time per folder; opening an existing store continues it, never mixes tokenizers
    TokenDataset  random access to tokens, captions and labels; a `Source` for training
    verify        reads every byte and compares it with what was committed

Shape letters: B batch, N positions, S streams, D channels, V vocabulary, I items of the store.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from tokenizers_mm.api import Batch, Quantizer, Tokens, TokenSpec
from tokenizers_mm.data import Draw, Preprocess
from tokenizers_mm.runtime import is_text, local_path
from tokenizers_mm.store.manifest import Inputs, Manifest, StoreMismatch, lock
from tokenizers_mm.store.shards import Quarantined, Row, Shard, row_shape, shard_indices, tokens_of
from tokenizers_mm.store.verification import Report, verify

__all__ = ["Inputs", "Quarantined", "Report", "Row", "StoreMismatch", "StoreWriter", "TokenDataset", "verify"]


class StoreWriter:
    """Creates a store or continues one; a context manager that holds the folder's lock.

    fingerprint  identifies the tokenizer: weights and configuration
    preprocess   what was done to images before encoding
    codebook_VD  vector of every code, for a single stream of V codes
    quantizer    the tokenizer's, kept for what a model of codes needs of it
    inputs       lets `verify` and `TokenDataset` tell a finished store from an interrupted one

    `records` holds the commit record of every committed shard by index.
    Raises `StoreMismatch` where the folder holds a store made otherwise, `ValueError` where it holds anything else or
    another process is writing it.
    """

    def __init__(
        self,
        path: str | Path,
        spec: TokenSpec,
        fingerprint: str,
        preprocess: Preprocess,
        codebook_VD: Tensor | None = None,
        inputs: Inputs | None = None,
        quantizer: Quantizer | None = None,
    ) -> None:
        self.path, self.spec = local_path(path, "path"), spec
        ours = Manifest(spec=spec, fingerprint=fingerprint, preprocess=preprocess.to_json(), inputs=inputs)
        Manifest.present(self.path)  # refuses a foreign folder before anything is written to it
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.path)
        try:
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
            if Manifest.present(self.path):
                Manifest.read(self.path).refuse_other(self.path, ours)
            else:
                ours.create(self.path, codebook_VD, quantizer)
            shards = [Shard(self.path, index, spec) for index in shard_indices(self.path)]
            self.records: dict[int, dict[str, Any]] = {shard.index: shard.record() for shard in shards}
            self._keys = {key for shard in shards for key in shard.rows(("key",))["key"]}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; nothing can be written afterwards."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def write_shard(
        self, index: int, tokens: Tokens, rows: Sequence[Row], quarantined: Sequence[Quarantined] = ()
    ) -> None:
        """Commit a shard: one row per image of `tokens`.

        Raises `ValueError`, and stores nothing, on tokens that do not fit the spec, a key that is not new or an index
        that is taken; `OSError` where the disk refuses.
        """
        if self._lock < 0:
            raise ValueError(f"{self.path}: this writer is closed")
        if index < 0 or index in self.records:
            raise ValueError(f"{self.path}: shard index {index} is {'taken' if index >= 0 else 'negative'}")
        if len(tokens) != len(rows):
            raise ValueError(f"{self.path}: {len(tokens)} images of tokens but {len(rows)} rows")
        if tokens.grid != self.spec.grid:
            raise ValueError(f"{self.path}: tokens have the grid {tokens.grid}, the store has {self.spec.grid}")
        # Latents are checked as they will be stored: a finite float32 can be infinite in bfloat16.
        (tokens if self.spec.discrete else tokens.to(torch.bfloat16)).check(self.spec)
        keys = [row.key for row in rows]
        _refuse_duplicates(self.path, keys, self._keys)
        shard = Shard(self.path, index, self.spec)
        shard.write(tokens, rows, quarantined)
        self._keys.update(keys)
        self.records[index] = shard.record()


class TokenDataset:
    """A store opened for reading: `len`, `keys`, `captions`, `labels_I`, and `batch` for any items in any order.

    spec, fingerprint, preprocess  what the manifest says
    codebook_VD                    vector of every code, or None
    quantizer                      the tokenizer's, for what a model of codes needs of it, or None
    captions                       one text per item ("" where it has none), or () where no item has one
    labels_I                       int64 (-1 where an item has none), or None where no item has one
    quarantined                    key -> what could not be stored, and why

    Raises `ValueError` for a folder that is no store, a damaged or unfinished store, or a key that occurs twice.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = Manifest.read(self.path)
        self.spec, self.fingerprint, self.preprocess = manifest.spec, manifest.fingerprint, manifest.preprocess
        self.codebook_VD = manifest.read_codebook(self.path)
        self._manifest = manifest
        self._shards = [Shard(self.path, index, self.spec) for index in shard_indices(self.path)]
        expected = manifest.inputs.shards if manifest.inputs else max(len(self._shards), 1)
        if len(self._shards) != expected:
            raise ValueError(f"{self.path}: {len(self._shards)} of {expected} shards are there; finish the encoding")
        rows: dict[str, list[Any]] = {"key": [], "caption": [], "label": []}
        starts = [0]
        self.quarantined: dict[str, Quarantined] = {}
        for shard in self._shards:
            self.quarantined |= {item["key"]: Quarantined(**item) for item in shard.record()["quarantined"]}
            for name, values in shard.rows(tuple(rows)).items():
                rows[name] += values
            starts.append(len(rows["key"]))
        self._starts_P = torch.tensor(starts)
        self.keys: list[str] = rows["key"]
        _refuse_duplicates(self.path, self.keys)
        captions, labels = rows["caption"], rows["label"]
        self.captions: Sequence[str] = [text or "" for text in captions] if any(captions) else ()
        known = any(label is not None for label in labels)
        self.labels_I = torch.tensor([-1 if label is None else label for label in labels]) if known else None

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def quantizer(self) -> Quantizer | None:
        """What gave the codes, read when it is first asked for: on the CPU, in eval mode, nothing of it learns.

        Its `vectors` are what the tokenizer's `embed` gives. None for latents, for tokenizers without a quantizer of
        ours, and for stores of earlier versions. `ValueError` where its file is missing or damaged.
        """
        return self._manifest.read_quantizer(self.path)

    def require(self, fingerprint: str) -> None:
        """Raise `StoreMismatch`, naming both, unless the tokenizer with this fingerprint made the store."""
        if fingerprint != self.fingerprint:
            raise StoreMismatch(f"{self.path}: made by tokenizer {self.fingerprint}, this is tokenizer {fingerprint}")

    def source_sha256(self, items: Sequence[int]) -> list[str]:
        """SHA-256 of the files that these items were made of; "" where none was recorded."""
        columns: dict[int, list[str]] = {}
        digests = []
        for item in items:
            number = int(torch.searchsorted(self._starts_P, item, right=True)) - 1
            if number not in columns:
                columns[number] = self._shards[number].rows(("sha256",))["sha256"]
            digests.append(columns[number][item - int(self._starts_P[number])])
        return digests

    def batch(self, items: Sequence[Draw] | Sequence[int] | Tensor) -> Batch:
        """Tokens, captions and labels of these items, in this order; reads only the rows asked for.

        Codes are int64 [B, N, S], latents float32 [B, N, D]; values of tokens and labels are read here, once, so that
        no training step has to. Raises `ValueError` for items that are not there, and for tokens that are damaged.
        """
        wanted = [item.index if isinstance(item, Draw) else int(item) for item in items]
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            raise ValueError(f"{self.path}: items {min(wanted)}..{max(wanted)} asked for, 0..{len(self) - 1} are there")
        index_B = torch.tensor(wanted, dtype=torch.int64)
        shard_B = torch.searchsorted(self._starts_P, index_B, right=True) - 1
        data = torch.empty(
            (len(wanted), *row_shape(self.spec)), dtype=torch.uint8 if self.spec.discrete else torch.bfloat16
        )
        for number in sorted(set(shard_B.tolist())):
            here = shard_B == number
            data[here] = self._shards[number].data[index_B[here] - self._starts_P[number]]
        try:
            tokens = tokens_of(data, self.spec).check(self.spec)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}; `tmm verify` says which shard is damaged") from error
        captions = [self.captions[i] for i in wanted] if self.captions else ()
        if self.labels_I is None or not wanted:
            return Batch(tokens, captions, None if self.labels_I is None else self.labels_I[index_B])
        labels_B = self.labels_I[index_B]
        return Batch(tokens, captions, labels_B, (int(labels_B.min()), int(labels_B.max())))


def _refuse_duplicates(path: Path, keys: Sequence[str], taken: set[str] | frozenset[str] = frozenset()) -> None:
    """Raise `ValueError` on a key that is empty, not valid UTF-8, or occurs twice."""
    for key, count in Counter(keys).items():
        if count > 1 or key in taken:
            raise ValueError(f"{path}: key {key!r} occurs more than once; every image needs a key of its own")
        if not key or not is_text(key):
            raise ValueError(f"{path}: key {key!r} is {'not valid UTF-8' if key else 'empty'}")
