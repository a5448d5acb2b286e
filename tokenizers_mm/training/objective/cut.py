"""Losses differentiated on the spot, where the graph is cut: at the reconstruction, or at the latents.

A loss behind a large frozen network (perceptual, adversarial, alignment) is differentiated once, with respect to the
tensor it reads. What goes on is its value with that gradient attached. So the graphs of two such networks never sit in
memory together, their parameters get no gradients, and whoever needs the gradient of one term alone (adaptive weights)
has it without a further pass through the network, which is where published trainers spend it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# A mean over a batch of pixels has gradients of about 1e-7, below what float16 holds inside a network under autocast.
# A power of two changes no digit of any other type.
_SCALE = 2.0**14


class Cut(NamedTuple):
    """A term that carries its gradient, and that gradient."""

    term: Tensor
    gradient: Tensor


class Scale:
    """What the terms' sum was multiplied by when it was differentiated (accumulation, loss scaling); set then."""

    value: float | Tensor = 1.0


def cut(
    x: Tensor, loss: Callable[[Tensor], Tensor], trained: nn.Module | None = None, scale: Scale | None = None
) -> Cut:
    """`loss(x)` whose gradient is already computed; backward through the term is one multiplication.

    trained  module inside the loss whose parameters get their gradients too, when the term is differentiated
    scale    learns by which number the term was multiplied
    """
    leaf = x.detach().requires_grad_()
    parameters = [] if trained is None else [p for p in trained.parameters() if p.requires_grad]
    with torch.enable_grad():
        value = loss(leaf).float()
        gradients = torch.autograd.grad(value * _SCALE, [leaf, *parameters], allow_unused=True)
    found = [None if g is None else g.div_(_SCALE) for g in gradients]
    gradient = torch.zeros_like(leaf) if found[0] is None else found[0]
    term: Tensor = _Attached.apply(value.detach(), scale, (gradient, *found[1:]), x, *parameters)
    return Cut(term, gradient)


class _Attached(torch.autograd.Function):
    """A value with given gradients with respect to the inputs."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, scale: Scale | None, gradients: Iterable[Tensor | None], *inputs: Tensor
    ) -> Tensor:
        ctx.scale, ctx.gradients = scale, tuple(gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = outputs
        if ctx.scale is not None:
            ctx.scale.value = out
        return (None, None, None, *(None if g is None else out.to(g.dtype) * g for g in ctx.gradients))
