"""Linear layers by how their weights start."""

from __future__ import annotations

from torch import nn

__all__ = ["scaled", "zero_linear"]


def scaled(layer: nn.Linear, gain: float = 1.0) -> nn.Linear:
    """Weights that keep the size of what comes in, times `gain`, and no bias; the layer itself."""
    nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
