"""Exponential moving average of a module's parameters; buffers are copied. It is what gets evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Shadow of everything in a module's state dict.

    decay  of the average, reached gradually: min(decay, (1 + n) / (10 + n)) after n updates
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the shadow towards the module's current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        state = module.state_dict()
        names = [name for name in state if name in averaged]
        torch._foreach_lerp_([self.shadow[n] for n in names], [state[n].detach() for n in names], 1 - decay)
        for name in state.keys() - averaged:
            self.shadow[name].copy_(state[name])

    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights."""
        module.load_state_dict(self.shadow)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Inside the block the module has the averaged weights, after it its own again."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.copy_to(module)
        try:
            yield
        finally:
            module.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Shadow weights and the number of updates."""
        return {f"shadow.{name}": value.contiguous() for name, value in self.shadow.items()} | {
            "updates": torch.tensor(self.updates)
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.updates = int(state["updates"])
        for name, value in self.shadow.items():
            value.copy_(state[f"shadow.{name}"])
