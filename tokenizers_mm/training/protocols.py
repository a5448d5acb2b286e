"""What the training loop asks of the modules that it trains, as protocols: an objective, and a discriminator beside it.

Both are `torch.nn.Module`s whose forward gives `Losses`. No base class is needed; inheriting from a protocol, as in
`class Mine(nn.Module, Objective)`, gives what need not be written: hooks that do nothing, no discriminator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn

from tokenizers_mm.losses import Losses

__all__ = ["Mean", "Objective", "Player", "as_objective"]

Mean = Callable[[Tensor], Tensor]


class Player(Protocol):
    """A discriminator with its own losses and optimiser, trained on the image pairs that an objective gives.

    learning_rate  peak of AdamW's, which follows the schedule of the run
    betas, clip    of AdamW; largest gradient norm
    """

    learning_rate: float
    betas: tuple[float, float]
    clip: float

    def forward(self, real_BCHW: Tensor, fake_BCHW: Tensor) -> Losses:
        """Terms to minimise, and statistics."""

    def begin_step(self, step: int) -> None:
        """Before every step of the run, whose number counts from 0; also where the discriminator rests in it."""
        return None

    def divergence(self, stats: Mapping[str, float]) -> str | None:
        """What has gone wrong, by the mean statistics of a step; the run ends with these words. None: nothing."""
        return None

    def end_step(self, stats: Mapping[str, Tensor]) -> None:
        """After an update, with the statistics averaged over micro-batches and processes."""
        return None


class Objective(Protocol):
    """A module that is trained, with all its losses."""

    @property
    def adversary(self) -> Player | None:
        """The discriminator that is trained beside it; no part of this module's parameters and state."""
        return None

    def forward(self, batch: Any) -> Losses:
        """Terms of a batch of the source; with a `pair` where the discriminator is trained in this step."""

    def begin_step(self, step: int) -> None:
        """Before every step of the optimiser, whose number counts from 0."""
        return None

    def end_step(self, mean: Mean) -> None:
        """After every step; `mean` averages a tensor over processes, all of which call it."""
        return None


def as_objective(module: nn.Module) -> Objective:
    """The module itself; `ValueError` naming what it, or its discriminator, lacks of the protocol."""
    _require(module, Objective, "objective")
    objective = cast(Objective, module)
    if objective.adversary is not None:
        _require(objective.adversary, Player, "objective.adversary")
        _require_apart(module, cast(nn.Module, objective.adversary))
    return objective


def _require(value: object, protocol: type, name: str) -> None:
    if not isinstance(value, nn.Module):
        raise ValueError(f"{name} is a {type(value).__name__}: expected a torch.nn.Module")
    members = [n for n in {**inspect.get_annotations(protocol), **vars(protocol)} if not n.startswith("_")]
    missing = [member for member in members if not _has(value, member, protocol)]
    if missing:
        raise ValueError(
            f"{name} is a {type(value).__name__} without {', '.join(missing)}: define that, or inherit from "
            f"tokenizers_mm.training.{protocol.__name__}"
        )


def _has(module: nn.Module, member: str, protocol: type) -> bool:
    """Whether a module has this member of its own: those of `nn.Module` and of a protocol give no losses."""
    unwritten = (nn.Module.forward, vars(protocol)["forward"])
    return hasattr(module, member) and getattr(getattr(module, member), "__func__", None) not in unwritten


def _require_apart(module: nn.Module, adversary: nn.Module) -> None:
    own = {id(parameter) for parameter in adversary.parameters()}
    inside = [name for name, parameter in module.named_parameters() if id(parameter) in own]
    if inside:
        raise ValueError(
            f"objective.adversary: its parameters are the objective's own as well, `{inside[0]}` for one, and would be "
            "trained twice; keep it out of the module, in a tuple for instance"
        )
