"""How a run optimises: what a recipe says under `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokenizers_mm.runtime import AskedPrecision

__all__ = ["TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to optimise.

    steps, batch_size  optimiser steps; examples in one, over all processes and accumulation
    accumulate         micro-batches per step
    learning_rate      peak, after `warmup` steps; then constant, or a cosine to 1 % of it
    clip               largest gradient norm
    ema                decay of the averaged weights, which are what a run returns
    seed               of the order of the data and of everything random in the objective
    precision          arithmetic of the forward and backward passes: "no" is float32; "auto" is bfloat16 where the
                       processor or the GPU computes in it, float32 elsewhere
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
    precision: AskedPrecision = "no"
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
