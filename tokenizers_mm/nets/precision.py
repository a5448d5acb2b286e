"""Run a net in the precision of its weights; float16 that overflows is done again in float32."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


def run(net: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Output of a net in the input's dtype, computed in that of its weights.

    Activations of float16 nets can exceed 65504 (the SDXL decoder is known for it). Where the output is not finite
    the net is run again with its weights as float32, with a warning. The check is eager only: under `torch.compile` it
    would break the graph.
    """
    weight = next(net.parameters(), None)
    if weight is None or weight.dtype == x_BCHW.dtype or torch.is_autocast_enabled(x_BCHW.device.type):
        plain: Tensor = net(x_BCHW)
        return plain
    out: Tensor = net(x_BCHW.to(weight.dtype))
    if weight.dtype == torch.float16 and not torch.compiler.is_compiling() and not bool(torch.isfinite(out).all()):
        warnings.warn(
            f"{type(net).__name__}: float16 activations overflow, computed again in float32; bfloat16 does not",
            stacklevel=2,
        )
        wide = {name: t.float() if t.is_floating_point() else t for name, t in net.state_dict(keep_vars=True).items()}
        out = torch.func.functional_call(net, wide, (x_BCHW.float(),))
    return out.to(x_BCHW.dtype)
