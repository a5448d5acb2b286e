"""Freeze a network so that nothing around it can thaw it."""

from __future__ import annotations

from torch import nn

__all__ = ["freeze"]


def freeze(module: nn.Module) -> nn.Module:
    """Turn every parameter into a buffer of the same name, in place, and go to eval; returns the module.

    A parent's `requires_grad_(True)`, which adversarial training calls at every step, and optimisers built from
    `parameters()` see parameters alone; names in the state dict stay the same, and gradients still pass through.
    """
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                delattr(child, name)
                child.register_buffer(name, parameter.detach())
    return module.eval()
