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

__all__ = [
    "OPTIONS_MAY_DIFFER",
    "check_keys",
    "file_sha256",
    "load_strict",
    "read_state",
    "some",
    "tensors_sha256",
    "unfetched",
]

_WRAPPERS = ("state_dict", "model")
# How the error about keys goes on: for a network of known weights, and for a tokenizer of options that may differ.
_ANOTHER = "; give the weights of exactly this network"
OPTIONS_MAY_DIFFER = (
    " (in our names); not the whole, or not only, the tokenizer it looks like: copy it again, or say config= for "
    "options that differ"
)


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


def load_strict(
    model: nn.Module,
    state: Mapping[str, Tensor],
    where: Path | str,
    *,
    leftover: Sequence[str] = (),
    remedy: str = _ANOTHER,
    assign: bool = False,
) -> None:
    """Load every tensor of the model from `state`, or nothing at all.

    leftover  how names start that `state` may hold beside them
    assign    the tensors become the model's own as they are, mapped or shared, in place of copies of their values

    Raises the `CheckpointError` of `check_keys`, and with `assign` one for integers where the model has floats.
    """
    own = model.state_dict()
    wanted = {name: value for name, value in state.items() if name in own or not name.startswith(tuple(leftover))}
    check_keys(own, wanted, where, remedy=remedy)
    for name, value in wanted.items():
        if assign and own[name].is_floating_point() != value.is_floating_point():
            raise CheckpointError(f"{where}: {name} is {value.dtype}: expected floats; give unquantized weights")
    model.load_state_dict(wanted, assign=assign)


def check_keys(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: Path | str, *, remedy: str = _ANOTHER
) -> None:
    """Raise one `CheckpointError` that names what is missing, what is too much, and which shapes differ, if any is."""
    shapes = [
        f"{key} {tuple(state[key].shape)} (expected {tuple(expected[key].shape)})"
        for key in sorted(expected.keys() & state.keys())
        if expected[key].shape != state[key].shape
    ]
    problems = {
        "missing keys": sorted(expected.keys() - state.keys()),
        "unexpected keys": sorted(state.keys() - expected.keys()),
        "wrong shapes": shapes,
    }
    found = [f"{name}: {some(keys)}" for name, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{where}: {'; '.join(found)}{remedy}")


def some(keys: Sequence[str], count: int = 4) -> str:
    """The first few, and how many more."""
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")


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
