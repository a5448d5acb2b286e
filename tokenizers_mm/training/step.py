"""One step of training: forward, backward and optimiser of a module with named losses, and of its adversary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tokenizers_mm.losses import Losses
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.ema import EMA

__all__ = ["NonFiniteLoss", "Players"]


class NonFiniteLoss(ValueError):
    """Training stopped because a loss term or the gradient became NaN or infinite; the message names it."""


class Players:
    """The module that is trained, and the adversary where there is one, prepared for this run.

    last_good  a sentence for errors: where the run can go on
    """

    def __init__(
        self,
        objective: nn.Module,
        adversary: nn.Module | None,
        config: TrainConfig,
        accelerator: Accelerator,
        last_good: Callable[[], str],
    ) -> None:
        self.objective, self.config, self.accelerator, self.last_good = objective, config, accelerator, last_good
        optimizer = _adamw(objective, config.learning_rate, config.betas, config.weight_decay)
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        self.second = None if adversary is None else _SecondPlayer(adversary, accelerator)
        self.ema = EMA(objective, config.ema)

    def parts(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Modules and optimisers as they are without accelerate."""
        parts = {"model": (self.objective, self.optimizer.optimizer)}
        if self.second:
            parts["adversary"] = (self.second.adversary, self.second.optimizer.optimizer)
        return parts

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
        if self.accelerator.mixed_precision != "fp16":  # under fp16 the loss scaler skips such steps by itself
            self._require_finite(step, norm, {"gradient norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.objective)
        if self.second:
            sums |= self._step_adversary(step, self.second)
        end_step = getattr(self.objective, "end_step", None)
        if end_step is not None:
            end_step(self.mean_over_processes)
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
        if self.accelerator.mixed_precision != "fp16":
            self._require_finite(step, norm, {"gradient norm of the discriminator": norm})
        trouble = second.adversary.trouble({name: self.mean_over_processes(v) for name, v in sums.items()})
        if trouble:
            raise NonFiniteLoss(f"step {step + 1}: {trouble}. {self.last_good()}")
        second.optimizer.step()
        second.optimizer.zero_grad()
        second.adversary.end_step()
        return sums

    def mean_over_processes(self, value: Tensor) -> Tensor:
        """The tensor, averaged."""
        return torch.as_tensor(self.accelerator.reduce(value, reduction="mean"))

    def _require_finite(self, step: int, value: Tensor, terms: Mapping[str, Tensor]) -> None:
        # All processes stop together, so one must hear of another's NaN.
        bad = self.accelerator.reduce((~torch.isfinite(value.detach())).float(), reduction="sum")
        if not bool(bad):
            return
        names = [name for name, term in terms.items() if not bool(torch.isfinite(term))] or [
            "a term of another process"
        ]
        raise NonFiniteLoss(
            f"step {step + 1}: {', '.join(names)} is not finite; the weights were not updated. {self.last_good()}. "
            f"Lower learning_rate (now {self.config.learning_rate}) or check the data"
        )


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
    # One kernel for all parameters: of a small net's step the loop over them takes a tenth.
    return torch.optim.AdamW(trainable, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], count: int) -> None:
    """Add to running means over `count` micro-batches."""
    for name, value in values.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / count
