"""Run a net in the precision of its weights; float16 that overflows is done again in float32."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


def run(net: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Output of a net in the input's dtype, computed in that of its weights.

    Activations of float16 nets can exceed 65504 (the SDXL decoder is known for it). Where the output is not finite
    though the input is, the net is run again with its weights and buffers as float32, with a warning. The check is
    eager only: under `torch.compile` it would break the graph. Under autocast the net is left to it.
    """
    weight = next(net.parameters(), None)
    if weight is None or torch.is_autocast_enabled(x_BCHW.device.type):
        plain: Tensor = net(x_BCHW)
        return plain
    out: Tensor = net(x_BCHW.to(weight.dtype))
    if weight.dtype == torch.float16 and not torch.compiler.is_compiling() and _overflowed(x_BCHW, out):
        warnings.warn(
            f"{type(net).__name__}: float16 activations overflow, computed again in float32; bfloat16 does not",
            stacklevel=2,
        )
        # Not the state dict: that lacks buffers that are not saved.
        state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        out = torch.func.functional_call(net, wide, (x_BCHW.float(),))
    return out.to(x_BCHW.dtype)


def _overflowed(x_BCHW: Tensor, out: Tensor) -> bool:
    return not bool(torch.isfinite(out).all()) and bool(torch.isfinite(x_BCHW).all())
