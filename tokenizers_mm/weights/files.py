"""Read the tensors of a weights file, whatever it is called: safetensors, torch pickles, and either one in shards.

The bytes decide the format, not the name. Tensors are mapped from the file where the format allows: reading costs the
pages that are later touched, and the file must stay as it is while they are in use. Nothing in a file is executed.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tokenizers_mm.weights import safe_pickles
from tokenizers_mm.weights.errors import CheckpointError
from tokenizers_mm.weights.formats import (
    AGAIN,
    EXPECTED,
    PICKLE_NAMES,
    SAFETENSORS_NAMES,
    WEIGHT_SUFFIXES,
    Format,
    broken,
    format_of,
    unreadable,
)

_DEEPEST, _MOST = 16, 1_000_000  # of a pickle's dictionaries and their entries: a hostile one contains itself

Wanted = Callable[[str], bool]


def read(path: Path, wanted: Wanted | None = None) -> dict[str, Any]:
    """The tensors in `path` (a file, a shard index, or a folder for `find`), on the CPU.

    Flat for safetensors. A pickle keeps its nested dictionaries (`{"state_dict": {...}, "epoch": 3}`) and whatever else
    they hold, inert (`safe_pickles`), less the entries whose key is no string. `wanted` selects tensors by full name,
    dictionaries joined by dots: other tensors are left out and shards without any are not opened; no match is no error.
    Raises `CheckpointError` naming the file, what it is, what was expected and what to do.
    """
    path = _file(path)
    kind = format_of(path)
    tree = _read_shards(path, wanted) if kind == "index" else _read_file(path, kind, wanted)
    if wanted is None and next(_tensors(tree), None) is None:
        raise CheckpointError(f"{path}: holds no tensors; expected those of a model; give the file with the weights")
    return tree


def keys(path: Path) -> list[str]:
    """Full names of the tensors that `read` returns, in the file's order; for shards, those that the index lists."""
    path = _file(path)
    kind = format_of(path)
    if kind == "index":
        return list(_index(path))
    return [name for name, _ in _tensors(_read_file(path, kind, None))]


def find(folder: Path) -> Path:
    """The weights file of a folder: by the names in use, else the only one; safetensors before pickles.

    A half-precision variant (`*.fp16.safetensors`) is taken only where there is nothing else. Raises `CheckpointError`
    listing the candidates where there are several, and the sub-folders with weights where there are none.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        inner = sorted({path.parent.name for path in folder.glob("*/*") if path.suffix in WEIGHT_SUFFIXES})
    except OSError as error:
        raise unreadable(folder, error) from error
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIXES)]
    full = [name for name in weights if not {"fp16", "bf16"} & set(name.split("."))]
    groups = (
        [name for name in SAFETENSORS_NAMES if name in names][:1],
        [name for name in names if name.endswith(".safetensors.index.json")],
        [name for name in names if name.endswith(".index.json")],
        [name for name in full if name.endswith(".safetensors")],
        [name for name in PICKLE_NAMES if name in names][:1],
        full,
        weights,
    )
    candidates = next((group for group in groups if group), [])
    if len(candidates) == 1:
        return folder / candidates[0]
    if candidates:
        raise CheckpointError(f"{folder}: holds {', '.join(candidates)}; expected one weights file; give its own path")
    remedy = f"its sub-folders {', '.join(inner)} do, give one of them" if inner else AGAIN
    raise CheckpointError(
        f"{folder}: holds no weights; expected a file ending in {', '.join(WEIGHT_SUFFIXES)}; {remedy}"
    )


def _file(path: Path) -> Path:
    """The regular file that `path` means (reading a pipe or a device could wait for ever)."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            path = find(path)
            mode = path.stat().st_mode
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: not a regular file; {EXPECTED}; give the path of the weights")
    return path


def _read_file(path: Path, kind: Format, wanted: Wanted | None) -> dict[str, Any]:
    if kind == "safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if wanted is None or wanted(name)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise broken(path, error) from error
    mapped = False
    if kind == "torch zip":
        with zipfile.ZipFile(path) as archive:  # torch maps compressed members as if they were not
            mapped = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    tree = safe_pickles.load(path, mmap=mapped)
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"{path}: holds a {type(tree).__name__}; expected a dictionary of tensors; save state_dict()"
        )
    return _select(path, tree, wanted or (lambda _: True))


def _select(path: Path, tree: dict[Any, Any], wanted: Wanted) -> dict[str, Any]:
    """The wanted tensors of nested dictionaries, and whatever is no tensor."""
    count = itertools.count()

    def select(tree: dict[Any, Any], prefix: str, depth: int) -> dict[str, Any]:
        selected: dict[str, Any] = {}
        for key, value in tree.items():
            if depth > _DEEPEST or next(count) > _MOST:
                raise CheckpointError(f"{path}: its dictionaries contain themselves; {EXPECTED}; save its state_dict()")
            if not isinstance(key, str):
                continue
            if isinstance(value, dict):
                selected[key] = select(value, f"{prefix}{key}.", depth + 1)
            elif not isinstance(value, torch.Tensor):
                selected[key] = value
            elif wanted(prefix + key):
                selected[key] = value.detach()
        return selected

    return select(tree, "", 0)


def _tensors(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in tree.items():
        if isinstance(value, torch.Tensor):
            yield prefix + key, value
        elif isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{key}.")


def _index(path: Path) -> dict[str, str]:
    """Which file of the folder holds each tensor."""
    remedy = "give the weights themselves, or copy the index again"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: text that is no JSON ({error}); {EXPECTED}; {remedy}") from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path}: JSON without a weight_map; {EXPECTED}; {remedy}")
    for name in shards.values():
        # links inside the folder are the hub cache's own; a path of any kind would leave it
        if not isinstance(name, str) or name != Path(name).name or "\\" in name or not name.endswith(WEIGHT_SUFFIXES):
            raise CheckpointError(
                f"{path}: lists the shard {name!r}; expected a file name in the same folder; {remedy}"
            )
    return shards


def _read_shards(path: Path, wanted: Wanted | None) -> dict[str, Any]:
    names = {key: shard for key, shard in _index(path).items() if wanted is None or wanted(key)}
    shards = sorted(set(names.values()))
    missing = [shard for shard in shards if not os.path.lexists(path.parent / shard)]
    if missing:
        listed = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise CheckpointError(f"{path}: its shards {listed} are missing; expected them in the same folder; {AGAIN}")
    found: dict[str, Any] = {}
    for shard in shards:
        file = _file(path.parent / shard)
        kind = format_of(file)
        if kind == "index":
            raise CheckpointError(f"{file}: a shard that is itself JSON; expected weights; {AGAIN}")
        expected = {key for key in names if names[key] == shard}
        tree = _read_file(file, kind, expected.__contains__)
        absent = sorted(key for key in expected if not isinstance(tree.get(key), torch.Tensor))
        if absent:
            raise CheckpointError(f"{file}: lacks {absent[0]!r}; {path.name} expects it there; {AGAIN}")
        found |= {key: tree[key] for key in expected}
    return found
