"""A checkpoint of training: safetensors and JSON, never a pickle, so that reading one runs nothing.

    model, optimizer                   .safetensors  weights and buffers; moments and step counts, "NUMBER.NAME"
    adversary, adversary_optimizer     .safetensors  those of a discriminator
    ema                                .safetensors
    state                              .json         number of the step, loss scaler of float16
    random_P                           .json         random numbers of process P: python, numpy, torch, its GPU

Own files instead of accelerate's `save_state`, which pickles optimiser and random numbers; of what that can do beside,
this loop uses nothing: models are whole in every process.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizers_mm.runtime import separate
from tokenizers_mm.training.ema import EMA

__all__ = ["TrainState", "random_numbers", "restore_random_numbers"]


class TrainState:
    """State of a training run: what a resumed run needs of an interrupted one, bit for bit.

    parts    name of the file -> a module and its optimiser, as it is and not as accelerate wraps it
    scaler   a `GradScaler`, where there is one
    """

    def __init__(
        self, parts: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]], ema: EMA, scaler: Any = None
    ) -> None:
        self.parts, self.ema, self.scaler = dict(parts), ema, scaler

    def write(self, folder: Path, step: int) -> None:
        """Write everything that is the same in every process into an empty folder."""
        for name, (module, optimizer) in self.parts.items():
            save_file(separate(module.state_dict()), folder / f"{name}.safetensors")
            save_file(separate(_moments(optimizer)), folder / f"{_optimizer_of(name)}.safetensors")
        save_file(self.ema.state_dict(), folder / "ema.safetensors")
        scaler = None if self.scaler is None else self.scaler.state_dict()
        (folder / "state.json").write_text(json.dumps({"step": step, "scaler": scaler}))

    def write_random(self, folder: Path, process: int) -> None:
        """Write what each process has of its own."""
        (folder / f"random_{process}.json").write_text(json.dumps(random_numbers()))

    def read(self, folder: Path, process: int, seed: int) -> None:
        """Take over what was written.

        seed  of the random numbers of a process that the checkpoint knows nothing of, with a warning

        Raises `ValueError` naming the folder where it is damaged, or of other modules than these.
        """
        try:
            state = json.loads((folder / "state.json").read_text())
            for name, (module, optimizer) in self.parts.items():
                module.load_state_dict(load_file(folder / f"{name}.safetensors"))
                _restore_moments(optimizer, load_file(folder / f"{_optimizer_of(name)}.safetensors"))
            self.ema.load_state_dict(load_file(folder / "ema.safetensors"))
            if self.scaler is not None and state["scaler"] is not None:
                self.scaler.load_state_dict(state["scaler"])
            self._read_random(folder, process, seed)
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{folder}: no checkpoint that this run can go on from ({type(error).__name__}: {reason}); remove the "
                "folder to go on from the one before it, or train anew in another run folder"
            ) from error

    def _read_random(self, folder: Path, process: int, seed: int) -> None:
        path = folder / f"random_{process}.json"
        if path.exists():
            restore_random_numbers(json.loads(path.read_text()))
            return
        warnings.warn(
            f"{folder}: written by fewer processes than there are now; the random numbers of process {process} start "
            "anew, so this run is not the one that it would have been",
            stacklevel=2,
        )
        set_seed(seed + process)


def random_numbers() -> dict[str, Any]:
    """State of this process's random generators, as JSON can hold it exactly."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    state = {"key": numpy["state"]["key"].tolist(), "pos": int(numpy["state"]["pos"])}
    found = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": state},
        "torch": bytes(torch.get_rng_state().numpy()).hex(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = bytes(torch.cuda.get_rng_state().numpy()).hex()
    return found


def restore_random_numbers(state: Mapping[str, Any]) -> None:
    """Inverse of `random_numbers`; that of a GPU is left out where there is none."""
    version, words, normal = state["python"]
    random.setstate((version, tuple(words), normal))
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], np.uint32)}})
    torch.set_rng_state(_bytes(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _optimizer_of(part: str) -> str:
    return "optimizer" if part == "model" else f"{part}_optimizer"


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the parameters. Options are the recipe's, and the learning rate is a function of the step."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, parts in state.items() for name, value in parts.items()}


def _restore_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    own = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value.clone()  # else it is mapped from a file that will be deleted
    known = {number for group in own["param_groups"] for number in group["params"]}
    if not state.keys() <= known:
        raise ValueError(f"moments of {len(state)} parameters for {len(known)}")
    optimizer.load_state_dict({**own, "state": state})
