"""Weights of foreign networks: read a file, load it completely or not at all, and say by a hash which they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_mm.weights.errors import CheckpointError
from tokenizers_mm.weights.files import read

__all__ = ["check_keys", "file_sha256", "load_strict", "read_state", "some", "tensors_sha256", "unfetched"]

_WRAPPERS = ("state_dict", "model")


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch.save file, whose code is never run; `ValueError` naming what is wrong with it.

    Training checkpoints keep them under "state_dict" or "model", and behind "module." where several processes trained.
    """
    tree: Mapping[str, Any] = read(Path(path))
    while inner := next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping)), None):
        tree = inner
    state = {name: value for name, value in tree.items() if isinstance(value, Tensor)}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def load_strict(model: nn.Module, state: Mapping[str, Tensor], path: Path, leftover: Sequence[str] = ()) -> None:
    """Load every tensor of the model from `state`; of others only those whose name starts with one of `leftover`.

    Raises `ValueError` naming the file and the first tensor that is missing, unknown or of another shape.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(name for name in state.keys() - own.keys() if not name.startswith(tuple(leftover)))
    shapes = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    for found, what in ((missing, "are not in it"), (unknown, "are not known to it"), (shapes, "have another shape")):
        if found:
            raise ValueError(
                f"{path}: {len(found)} tensors of the network {what}, the first {found[0]!r}; "
                "give the weights of exactly this network"
            )
    model.load_state_dict({name: state[name] for name in own})


def unfetched(name: str, error: Exception) -> ValueError:
    """The error for a network whose weights are neither on this machine nor within reach."""
    reason = " ".join(str(error).split())
    return ValueError(
        f"name={name!r}: its weights could not be fetched ({type(error).__name__}: {reason[:300]}); "
        "connect to the network once, or pass weights=PATH"
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of a module's tensors, in state-dict order."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_keys(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: Path | str) -> None:
    """One line that names what is missing, what is too much, and which shapes differ."""
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} (expected {tuple(expected[key].shape)})"
        for key in sorted(expected.keys() & state.keys())
        if expected[key].shape != state[key].shape
    ]
    problems = {"missing keys": missing, "unexpected keys": unexpected, "wrong shapes": shapes}
    found = [f"{name}: {some(keys)}" for name, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{where}: {'; '.join(found)} (in our names); not the whole, or not only, the tokenizer it looks like: "
            "copy it again, or say config= for options that differ"
        )


def some(keys: list[str], count: int = 4) -> str:
    """The first few, and how many more."""
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")
