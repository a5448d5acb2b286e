"""Is a token store exactly what was committed? Reads every byte, decodes every row, accounts for every input."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers_mm.api import TokenSpec
from tokenizers_mm.store.folder import require_store
from tokenizers_mm.store.manifest import Manifest
from tokenizers_mm.store.quarantine import Quarantine
from tokenizers_mm.store.shards import Shard, digest, shard_indices, tokens_of

__all__ = ["Report", "verify"]


@dataclass(frozen=True)
class Report:
    """What `verify` found: counts, and one line for every problem. `inputs` is None where the manifest has no list.

    refused    what is known of the quarantined images: share and reasons
    quantizer  kind of the quantizer that is kept with the tokens, None without one
    """

    shards: int
    inputs: int | None
    encoded: int
    quarantined: int
    problems: tuple[str, ...]
    refused: Quarantine = field(default_factory=Quarantine)
    quantizer: str | None = None

    @property
    def ok(self) -> bool:
        """True where every byte is as committed and every input is accounted for."""
        return not self.problems

    @property
    def quarantined_share(self) -> float:
        """Quarantined images, of all that the store was made of; a store that is `ok` may have too many of them."""
        return self.refused.share


def verify(path: str | Path) -> Report:
    """Check a whole store. Damage is reported, not raised; a folder that is no store is a `ValueError`."""
    folder = require_store(path)
    try:
        manifest = Manifest.read(folder)
    except ValueError as error:
        return Report(len(shard_indices(folder)), None, 0, 0, (str(error),))
    problems, keys, encoded = [], Counter[str](), 0
    refused: list[dict[str, Any]] = []
    for read in (manifest.read_codebook, manifest.read_quantizer):
        try:
            read(folder)
        except ValueError as error:
            problems.append(str(error))
    indices = shard_indices(folder)
    for index in indices:
        try:
            stored, others = _check_shard(Shard(folder, index, manifest.spec))
        except ValueError as error:
            problems.append(str(error))
            continue
        keys.update(stored + [item["key"] for item in others])
        encoded += len(stored)
        refused += others
    expected = manifest.inputs.shards if manifest.inputs else max(indices, default=-1) + 1
    present = set(range(expected)) | set(shard_indices(folder, "safetensors"))
    problems += [f"{folder}: shard {index} is not committed" for index in sorted(present - set(indices))]
    problems += [f"{folder}: key {key!r} occurs {count} times" for key, count in keys.items() if count > 1]
    inputs = manifest.inputs.count if manifest.inputs else None
    known = encoded + len(refused)
    if inputs not in (None, known):
        problems.append(f"{folder}: {inputs} inputs, but {encoded} encoded + {len(refused)} quarantined")
    quarantine = Quarantine.of(refused, inputs or known, manifest.preprocess)
    kind = manifest.quantizer["options"]["kind"] if manifest.quantizer else None
    return Report(len(indices), inputs, encoded, len(refused), tuple(problems), quarantine, kind)


def _check_shard(shard: Shard) -> tuple[list[str], list[dict[str, Any]]]:
    """Keys stored and images quarantined of a shard that is whole; `ValueError` otherwise."""
    record = shard.record()
    for suffix, facts in record["files"].items():
        if digest(shard.path(suffix).read_bytes()) != facts["sha256"]:
            raise ValueError(f"{shard.path(suffix)}: does not match the SHA-256 in {shard}")
    keys = shard.rows(("key",))["key"]
    if not len(keys) == len(shard.data) == record["encoded"]:
        raise ValueError(f"{shard}: {len(keys)} keys, {len(shard.data)} images, {record['encoded']} committed")
    _check_tokens(shard, shard.spec)
    return keys, record["quarantined"]


def _check_tokens(shard: Shard, spec: TokenSpec) -> None:
    try:
        tokens_of(shard.data, spec).check(spec)
    except ValueError as error:
        raise ValueError(f"{shard.path('safetensors')}: {error}") from error
