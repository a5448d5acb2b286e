"""One step of training: gradients and update of an objective, then of the discriminator beside it.

An update asks the device once: whether losses and gradients are finite, because weights that are NaN cannot be taken
back. Everything else stays on the device, and what can be checked of data is checked where data is made or read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tokenizers_mm.losses import Losses
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.ema import EMA
from tokenizers_mm.training.protocols import Player, as_objective

__all__ = ["DivergenceError", "Trainer"]


class DivergenceError(ValueError):
    """Training has diverged: a loss term or the gradient is NaN or infinite, or a discriminator's logits exploded.

    The message names it. The update that it would have spoilt was not made.
    """


class Trainer:
    """An objective, the discriminator that it may have, and their optimisers, prepared for this run.

    last_good  a sentence for errors: where the run can go on

    Raises `ValueError` naming what the objective lacks of `Objective`.
    """

    def __init__(
        self, module: nn.Module, config: TrainConfig, accelerator: Accelerator, last_good: Callable[[], str]
    ) -> None:
        self.objective, self.config, self.accelerator = as_objective(module), config, accelerator
        self.main = _ModuleTrainer(module, config, accelerator, config.weight_decay)
        player = self.objective.adversary
        self.discriminator = None if player is None else _DiscriminatorTrainer(player, accelerator)
        self.ema, self.last_good = EMA(module, config.ema), last_good

    def parts(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Modules and optimisers as they are without accelerate."""
        parts = {"model": self.main, "adversary": self.discriminator}
        return {name: (part.module, part.optimizer.optimizer) for name, part in parts.items() if part is not None}

    def step(self, step: int, batches: Sequence[Any]) -> dict[str, Tensor]:
        """One update of each; returns the mean of every term and statistic over the micro-batches."""
        self.objective.begin_step(step)
        if self.discriminator is not None:
            self.discriminator.player.begin_step(step)
        rate = self.config.learning_rate_at(step)
        found = self.main.gradients([(batch,) for batch in batches])
        self._check(step, found, "gradient norm")
        self.main.update(rate)
        self.ema.update(self.main.module)
        means = {**found.terms, **found.stats, "loss": found.loss}
        if self.discriminator is not None and found.pairs:
            means |= self._step_discriminator(self.discriminator, step, found.pairs, rate / self.config.learning_rate)
        self.objective.end_step(self.mean_over_processes)
        return means

    def mean_over_processes(self, value: Tensor) -> Tensor:
        """The tensor, averaged."""
        return torch.as_tensor(self.accelerator.reduce(value, reduction="mean"))

    def _step_discriminator(
        self, part: _DiscriminatorTrainer, step: int, pairs: Sequence[tuple[Tensor, Tensor]], schedule: float
    ) -> dict[str, Tensor]:
        """One update on the images of the objective's; its terms and statistics."""
        found = part.gradients(pairs)
        stats = self._check(step, found, "gradient norm of the discriminator", part.player.divergence)
        part.update(part.player.learning_rate * schedule)
        part.player.end_step(stats)
        return {**found.terms, **found.stats}

    def _check(
        self,
        step: int,
        found: _Gradients,
        norm_name: str,
        divergence: Callable[[Mapping[str, float]], str | None] = lambda stats: None,
    ) -> dict[str, Tensor]:
        """Statistics averaged over processes; `DivergenceError`, in all of them, where one has diverged."""
        infinite = [~torch.isfinite(value) for value in (found.loss, found.norm)]
        every = [value.float() for value in (*infinite, *found.stats.values())]
        mean = self.mean_over_processes(torch.stack(every))
        bad_loss, bad_norm, *values = mean.tolist()  # the one wait for the device
        names = []
        if bad_loss:
            names = [name for name, term in found.terms.items() if not bool(torch.isfinite(term))]
            names = names or ["a term of another process"]
        elif bad_norm and self.accelerator.mixed_precision != "fp16":  # whose loss scaler skips such steps by itself
            names = [norm_name]
        if names:
            raise DivergenceError(
                f"step {step + 1}: {', '.join(names)} is not finite; the weights were not updated. {self.last_good()}. "
                f"Lower learning_rate (now {self.config.learning_rate}) or check the data"
            )
        diverged = divergence(dict(zip(found.stats, values, strict=True)))
        if diverged:
            raise DivergenceError(f"step {step + 1}: {diverged}. {self.last_good()}")
        return dict(zip(found.stats, mean[2:].unbind(), strict=True))


@dataclass
class _Gradients:
    """What the micro-batches of a step gave: means of terms, sum and statistics, image pairs, norm of the gradient."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))


class _ModuleTrainer:
    """A module and its AdamW, prepared for this run."""

    def __init__(
        self, module: nn.Module, options: TrainConfig | Player, accelerator: Accelerator, weight_decay: float
    ) -> None:
        self.module, self.accelerator, self.clip = module, accelerator, options.clip
        trainable = [p for p in module.parameters() if p.requires_grad]
        # One kernel for all parameters: of a small net's step the loop over them takes a tenth.
        rate, betas = options.learning_rate, options.betas
        adamw = torch.optim.AdamW(trainable, lr=rate, betas=betas, weight_decay=weight_decay, fused=True)
        self.model, self.optimizer = accelerator.prepare(module, adamw)

    def gradients(self, inputs: Sequence[tuple[Any, ...]]) -> _Gradients:
        """Forward and backward pass of every micro-batch; the gradients are clipped."""
        found = _Gradients()
        for i, batch in enumerate(inputs):
            with nullcontext() if i == len(inputs) - 1 else self.accelerator.no_sync(self.model):
                losses: Losses = self.model(*batch)
                loss = torch.stack([term.float() for term in losses.terms.values()]).sum() / len(inputs)
                self.accelerator.backward(loss)
            found.loss = found.loss + loss.detach()
            _add(found.terms, losses.terms, len(inputs))
            _add(found.stats, losses.stats, len(inputs))
            found.pairs += [] if losses.pair is None else [losses.pair]
        found.norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        return found

    def update(self, learning_rate: float) -> None:
        """Move the weights by the gradients, which are gone then."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()


class _DiscriminatorTrainer(_ModuleTrainer):
    """A discriminator and its AdamW."""

    def __init__(self, player: Player, accelerator: Accelerator) -> None:
        super().__init__(cast(nn.Module, player).train(), player, accelerator, weight_decay=0.0)
        self.player = player


def _add(means: dict[str, Tensor], values: Mapping[str, Tensor], count: int) -> None:
    """Add to running means over `count` micro-batches."""
    for name, value in values.items():
        means[name] = means.get(name, torch.zeros_like(value)) + value.detach() / count
