"""Save and load tokenizers: a folder with config.json and model.safetensors; written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tokenizers_mm.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder, config_dict
from tokenizers_mm.checkpoints.errors import CheckpointError
from tokenizers_mm.config import parse

_FORMAT = "tokenizers-mm/1"


def save(tokenizer: Autoencoder, folder: Path | str) -> None:
    """Write config.json and model.safetensors into `folder` (created; an older tokenizer there is replaced).

    Raises `CheckpointError` where replacing the folder would delete anything but a tokenizer.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = {"format": _FORMAT, "kind": "autoencoder", "model": config_dict(tokenizer)}
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in tokenizer.state_dict().items()}, partial / "model.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def load(folder: Path | str) -> Autoencoder:
    """Load what `save` wrote, in eval mode. Raises `CheckpointError` naming file, finding and remedy."""
    folder = Path(folder)
    config = _read_config(folder)
    tokenizer = build_autoencoder(parse(AutoencoderConfig, config.get("model"), str(folder / "config.json")))
    _load_weights(tokenizer, folder / "model.safetensors")
    return tokenizer.eval()


def fingerprint(tokenizer: Autoencoder) -> str:
    """SHA-256 over configuration and weights: equal exactly when the tokenizers are."""
    digest = hashlib.sha256(json.dumps(config_dict(tokenizer), sort_keys=True).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: choose another name")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if found - {"config.json", "model.safetensors"}:
        raise CheckpointError(f"{folder} holds {_some(sorted(found))}, not just a tokenizer: choose another folder")
    if found:
        try:
            _read_config(folder)
        except CheckpointError as error:
            raise CheckpointError(f"{folder} holds no tokenizer of ours ({error}): choose another folder") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); expected a folder that `tmm train` or `save` wrote"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); save the tokenizer again") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT or config.get("kind") != "autoencoder":
        raise CheckpointError(f"{path}: expected format {_FORMAT!r} and kind 'autoencoder', found {str(config)[:80]}")
    return config


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); copy or save it again") from error
    expected = module.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} (expected {tuple(expected[k].shape)})"
        for k in sorted(expected.keys() & state.keys())
        if expected[k].shape != state[k].shape
    ]
    problems = {"missing keys": missing, "unexpected keys": unexpected, "wrong shapes": shapes}
    found = [f"{name}: {_some(keys)}" for name, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{path} does not fit its config.json; {'; '.join(found)}")
    module.load_state_dict(state)


def _some(keys: list[str], count: int = 4) -> str:
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")
