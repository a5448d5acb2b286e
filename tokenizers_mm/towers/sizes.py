"""How many weights a network has, frozen ones included."""

from __future__ import annotations

from torch import nn

from tokenizers_mm.towers.tower import Tower

__all__ = ["weight_count"]


def weight_count(module: nn.Module) -> int:
    """Numbers in the parameters of a module and in the networks of towers inside, whose weights are buffers."""
    towers = (part for part in module.modules() if isinstance(part, Tower))
    return sum(parameter.numel() for parameter in module.parameters()) + sum(tower.weight_count for tower in towers)
