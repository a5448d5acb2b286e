"""Modules of vector-quantize-pytorch (https://github.com/lucidrains/vector-quantize-pytorch) and quantizers of ours,
one into the other."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from quantizers.adapters.foreign import Foreign
from quantizers.adapters.peer import name_of, peer
from quantizers.adapters.reading import Unlike, options_of
from quantizers.adapters.state import load_vector_quantize_pytorch, vector_quantize_pytorch_state
from quantizers.adapters.writing import call_of
from quantizers.base import Quantizer
from quantizers.kinds import build
from quantizers.latent import Latent


def from_vector_quantize_pytorch(module: nn.Module, *, wrap: bool = False) -> Quantizer:
    """Turn any module of vector-quantize-pytorch into a quantizer of ours, in layout [batch, position, channel].

    Where a quantizer of ours does the same in evaluation and has every option of the module, the result is that one,
    with a copy of the weights and averages. It trains on by our rules: `Residual` and `Product` average their losses,
    dead rows are those below a share of the mean count, and codebooks and level values that learn by gradients have a
    loss term for each direction. Otherwise it is a `Foreign` that runs the module itself; its `reason` says why.

    wrap  run the module itself in any case: training then follows its own rules to the letter

    Raises `ValueError` where the module is not one of that package.
    """
    if wrap or not name_of(module):
        return Foreign(module, "asked for").train(module.training)
    try:
        quantizer = _native(module)
    except Unlike as unlike:
        quantizer = Foreign(module, str(unlike))
    return quantizer.train(module.training)


def _native(module: nn.Module) -> Quantizer:
    options = options_of(module)
    try:
        quantizer = build(options)
    except ValueError as error:  # a codebook of one row, for instance
        raise Unlike(str(error)) from error
    load_vector_quantize_pytorch(quantizer, module.state_dict())
    _follow(quantizer, module)
    return quantizer


def _follow(quantizer: Quantizer, module: nn.Module) -> None:
    """Learn where the module learns, on the same device."""
    for latent in quantizer.modules():
        if isinstance(latent, Latent):
            latent.value_DL.requires_grad_(isinstance(module.values_per_latent, nn.ParameterList))
    tensors = [*module.parameters(), *module.buffers()]
    if tensors:
        quantizer.to(tensors[0].device)


def to_vector_quantize_pytorch(quantizer: Quantizer) -> nn.Module:
    """Build the module of vector-quantize-pytorch that does what the quantizer does, with a copy of its weights.

    In evaluation both give the same codes and vectors. Its layout is [batch, position, channel] where the class has a
    choice. A `Foreign` gives back the module it runs. Raises `ValueError` naming what that package does not have, and
    `ImportError` where it is not installed.
    """
    if isinstance(quantizer, Foreign):
        return quantizer.module
    name, arguments = call_of(quantizer)
    module = cast(nn.Module, getattr(peer(), name)(**arguments))
    module.load_state_dict(vector_quantize_pytorch_state(quantizer))
    tensors: list[torch.Tensor] = [*quantizer.parameters(), *quantizer.buffers()]
    return module.to(tensors[0].device if tensors else "cpu").train(quantizer.training)
