"""One training loop for everything that has named losses: tokenizers and generators alike.

Mixed precision, several processes and trackers are accelerate's business. What is ours: the position in the data is a
function of the step, so an interrupted run resumes exactly (model, EMA, optimiser, random state, data; of both players
where there is an adversary); a non-finite loss stops the run before it touches the weights; nothing is left
half-written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizers_mm.data.loader import Positions, micro_batches
from tokenizers_mm.data.sources import Source
from tokenizers_mm.ema import EMA
from tokenizers_mm.paths import local_path
from tokenizers_mm.progress import Reporter

Picture = Callable[[], NDArray[np.uint8]]
_KEPT_CHECKPOINTS, _EMA_FILE = 2, "ema.safetensors"


class Losses(NamedTuple):
    """What an objective's forward returns: terms whose sum is minimised, and detached scalars worth logging."""

    terms: Mapping[str, Tensor]
    stats: Mapping[str, Tensor]


class NonFiniteLoss(ValueError):
    """Training stopped because a loss term or the gradient became NaN or infinite; the message names it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to optimise.

    steps, batch_size  optimiser steps; examples in one, over all processes and accumulation
    accumulate         micro-batches per step
    learning_rate      peak, after `warmup` steps; then constant, or a cosine to 1 % of it
    clip               largest gradient norm
    ema                decay of the averaged weights, which are what a run returns
    seed               of the order of the data and of everything random in the objective
    *_every            steps between log lines, pictures (0: none) and checkpoints
    tracker            an accelerate tracker ("tensorboard", "wandb", ...) or "none"
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    learning_rate: float = 3e-4
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    workers: int = 0
    log_every: int = 10
    picture_every: int = 0
    checkpoint_every: int = 500
    tracker: str = "tensorboard"

    def __post_init__(self) -> None:
        """Refuse values no run can use."""
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("warmup", "weight_decay", "seed", "workers", "picture_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: expected two decays in [0, 1)")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: expected a decay in [0, 1)")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size}: not a multiple of accumulate={self.accumulate}")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then constant or cosine."""
        rate = self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1))
        if self.schedule == "cosine":
            rate *= 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * step / self.steps)))
        return rate


def train(
    objective: nn.Module,
    source: Source,
    config: TrainConfig,
    folder: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    picture: Picture | None = None,
    adversary: nn.Module | None = None,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Train `objective`, whose forward maps a batch of `source` to `Losses`, in place; it ends with the EMA weights.

    Two members of an objective are understood: `end_step(mean)` is called after every step, with a function that
    averages a tensor over processes; `pairs`, a list of (real, fake) images of the micro-batches since, is what an
    adversary is trained on.

    folder   receives checkpoints/, pictures/, history.jsonl and the tracker's files
    recipe   what the run is; stored, and a resumed run must have the same
    adversary  second player with its own optimiser, in the checkpoints as well; its learning rate follows the schedule.
             A module whose forward maps (real, fake) to its own `Losses`, with the members of
             `tokenizers_mm.losses.adversarial.Adversary`: step, config, trains, end_step, trouble
    picture  called every `picture_every` steps with the EMA weights in place; returns uint8 [H, W, 3]
    resume   go on from the last checkpoint (from the start if there is none)

    Returns the history: one mapping per logged step. Raises `NonFiniteLoss`, and `ValueError` when the folder holds
    another run.
    """
    run = _Run(objective, source, config, local_path(folder, "folder"), adversary)
    start = run.open(json.loads(json.dumps({"train": asdict(config), "recipe": recipe or {}})), resume)
    if start == config.steps:
        run.ema.copy_to(objective)
        return run.reporter.history
    with run.reporter:
        for step, batches in enumerate(run.batches(start), start):
            losses = run.step(step, batches)
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                run.log(done, losses)
            if picture and config.picture_every and done % config.picture_every == 0:
                run.save_picture(done, picture)
            if done % config.checkpoint_every == 0 or done == config.steps:
                run.save(done)
    run.accelerator.end_training()
    run.ema.copy_to(objective)
    return run.reporter.history


class _Run:
    """The state of one training run, and the actions of the loop above."""

    def __init__(
        self,
        objective: nn.Module,
        source: Source,
        config: TrainConfig,
        folder: Path,
        adversary: nn.Module | None = None,
    ) -> None:
        self.objective, self.source, self.config, self.folder = objective, source, config, folder
        # accelerate keeps the precision of the first run for the whole process; ours is that of each run.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(folder),
        )
        parts = self.accelerator.num_processes * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size={config.batch_size}: not a multiple of {self.accelerator.num_processes} processes x "
                f"accumulate={config.accumulate}"
            )
        self.micro_size = config.batch_size // parts
        optimizer = _adamw(objective, config.learning_rate, config.betas, config.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.second = None if adversary is None else _SecondPlayer(adversary, self.accelerator)
        self.ema = EMA(objective, config.ema)
        self.reporter = Reporter(folder, config.steps, config.batch_size, self.accelerator.is_main_process)

    def open(self, identity: dict[str, Any], resume: bool) -> int:
        """Prepare the folder; return the step to start from."""
        record = self.folder / "run.json"
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
        if record.exists():
            previous = json.loads(record.read_text())
            if not resume:
                raise ValueError(f"{self.folder} holds a run already: resume it, or choose another folder")
            if previous != identity:
                raise ValueError(
                    f"{self.folder} holds another run, they differ in {', '.join(_differences(previous, identity))}: "
                    "resume with the same recipe, or choose another folder"
                )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            _write_text(record, json.dumps(identity, indent=2))
        checkpoints = _checkpoints(self.folder)
        start = 0
        if resume and checkpoints:
            self.accelerator.load_state(str(checkpoints[-1]))
            self.ema.load_state_dict(load_file(checkpoints[-1] / _EMA_FILE))
            start = int(checkpoints[-1].name.removeprefix("step_"))
        else:
            set_seed(self.config.seed, device_specific=True)
        self.reporter.start_at(start)
        if self.config.tracker != "none":
            self.accelerator.init_trackers("tokenizers-mm")
        self.model.train()
        return start

    def batches(self, start: int) -> Iterator[list[Any]]:
        """This process's micro-batches of every step from `start` on."""
        positions = Positions(
            seed=self.config.seed,
            steps=self.config.steps,
            batch_size=self.config.batch_size,
            accumulate=self.config.accumulate,
            micro_size=self.micro_size,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        stream = micro_batches(self.source, positions, start, workers=self.config.workers)
        for _ in range(start, self.config.steps):
            yield [next(stream).to(self.accelerator.device) for _ in range(self.config.accumulate)]

    def step(self, step: int, batches: list[Any]) -> dict[str, Tensor]:
        """One optimiser step; returns the mean of every term and statistic over the micro-batches."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step)
        if self.second:
            self.second.begin(step, self.config.learning_rate_at(step) / self.config.learning_rate)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses: Losses = self.model(batch)
                total = torch.stack([term.float() for term in losses.terms.values()]).sum() / len(batches)
                self._require_finite(step, total, losses.terms)
                self.accelerator.backward(total)
            _add(sums, {**losses.terms, **losses.stats, "loss": total * len(batches)}, len(batches))
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if self.config.precision != "fp16":  # under fp16 the loss scaler skips such steps by itself
            self._require_finite(step, norm, {"gradient norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.objective)
        if self.second:
            sums |= self._step_adversary(step, self.second)
        end_step = getattr(self.objective, "end_step", None)
        if end_step is not None:
            end_step(self._mean_over_processes)
        return sums

    def _step_adversary(self, step: int, second: _SecondPlayer) -> dict[str, Tensor]:
        """One step of the second player's optimiser, on the images of the first player's; its terms and statistics."""
        pairs: list[tuple[Tensor, Tensor]] = self.objective.pairs  # type: ignore[assignment]
        sums: dict[str, Tensor] = {}
        if not second.adversary.trains(step):
            pairs.clear()
            return sums
        for i, (real, fake) in enumerate(pairs):
            with nullcontext() if i == len(pairs) - 1 else self.accelerator.no_sync(second.model):
                losses: Losses = second.model(real, fake)
                total = torch.stack([term.float() for term in losses.terms.values()]).sum() / len(pairs)
                self._require_finite(step, total, losses.terms)
                self.accelerator.backward(total)
            _add(sums, {**losses.terms, **losses.stats}, len(pairs))
        pairs.clear()
        norm = self.accelerator.clip_grad_norm_(second.model.parameters(), second.adversary.config.clip)
        if self.config.precision != "fp16":
            self._require_finite(step, norm, {"gradient norm of the discriminator": norm})
        trouble = second.adversary.trouble({name: self._mean_over_processes(v) for name, v in sums.items()})
        if trouble:
            raise NonFiniteLoss(f"step {step + 1}: {trouble}. {self._last_good()}")
        second.optimizer.step()
        second.optimizer.zero_grad()
        second.adversary.end_step()
        return sums

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        return torch.as_tensor(self.accelerator.reduce(value, reduction="mean"))

    def log(self, done: int, losses: Mapping[str, Tensor]) -> None:
        """Write one line of history: losses averaged over processes, speed, learning rate."""
        names = sorted(losses)
        values = self.accelerator.reduce(torch.stack([losses[name].float() for name in names]), reduction="mean")
        row = dict(zip(names, values.tolist(), strict=True)) | {"lr": self.config.learning_rate_at(done - 1)}
        self.reporter.log(done, row)
        if self.config.tracker != "none":
            self.accelerator.log(row, step=done)

    def save_picture(self, done: int, picture: Picture) -> None:
        """Save what `picture` shows of the EMA weights."""
        if not self.accelerator.is_main_process:
            return
        with self.ema.swapped(self.objective):
            self.objective.eval()
            pixels = picture()
            self.objective.train()
        path = self.folder / "pictures" / f"step_{done:07d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        if self.config.tracker != "none":
            tracker = self.accelerator.get_tracker(self.config.tracker)
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if self.config.tracker == "tensorboard" else {}
                tracker.log_images({"picture": pixels[None]}, step=done, **layout)

    def save(self, done: int) -> None:
        """Write a checkpoint under a temporary name, then give it its own: a reader never sees half of one."""
        final = self.folder / "checkpoints" / f"step_{done:07d}"
        partial = final.with_name(f".{final.name}.partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(self.ema.state_dict(), partial / _EMA_FILE)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in _checkpoints(self.folder)[:-_KEPT_CHECKPOINTS]:
                shutil.rmtree(old)

    def _require_finite(self, step: int, value: Tensor, terms: Mapping[str, Tensor]) -> None:
        # All processes stop together, so one must hear of another's NaN.
        bad = self.accelerator.reduce((~torch.isfinite(value.detach())).float(), reduction="sum")
        if not bool(bad):
            return
        names = [name for name, term in terms.items() if not bool(torch.isfinite(term))] or [
            "a term of another process"
        ]
        raise NonFiniteLoss(
            f"step {step + 1}: {', '.join(names)} is not finite; the weights were not updated. {self._last_good()}. "
            f"Lower learning_rate (now {self.config.learning_rate}) or check the data"
        )

    def _last_good(self) -> str:
        kept = _checkpoints(self.folder)
        return f"Last good checkpoint: {kept[-1] if kept else 'none yet'}"


class _SecondPlayer:
    """An adversary and its optimiser, prepared for this run."""

    def __init__(self, adversary: Any, accelerator: Accelerator) -> None:
        self.adversary = adversary
        optimizer = _adamw(adversary, adversary.config.learning_rate, adversary.config.betas, 0.0)
        self.model, self.optimizer = accelerator.prepare(adversary, optimizer)
        adversary.train()

    def begin(self, step: int, factor: float) -> None:
        """Before a step: what the adversary must know, and its learning rate."""
        self.adversary.step = step
        for group in self.optimizer.param_groups:
            group["lr"] = self.adversary.config.learning_rate * factor


def _adamw(
    module: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    trainable = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=learning_rate, betas=betas, weight_decay=weight_decay)


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], count: int) -> None:
    """Add to running means over `count` micro-batches."""
    for name, value in values.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / count


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step_*"))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b})
        return [d for key in keys for d in _differences(a.get(key), b.get(key), f"{path}.{key}".strip("."))]
    return [] if a == b else [f"{path} ({a!r} there, {b!r} here)"]
