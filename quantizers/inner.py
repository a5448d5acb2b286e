"""The quantizers inside a composite one: checked, and repeated where one stands for several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from quantizers.base import Quantized, Quantizer

Inner = Quantizer | Sequence[Quantizer]


def checked_inner(quantizer: Any, where: str = "inner") -> Quantizer:
    """The quantizer itself; `ValueError` unless it has codes and treats every position on its own."""
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"{where}={quantizer!r}: expected a quantizer, which `quantizers.build` makes of options")
    if not quantizer.codes or not quantizer.pointwise:
        raise ValueError(
            f"{where}.kind = {quantizer.kind!r}: expected a quantizer with codes that treats every position on its own"
        )
    return quantizer


def inner_quantizers(inner: Inner, count: int | None, shared: bool, name: str) -> list[Quantizer]:
    """The `count` quantizers of a composite: those of a sequence, or one and new ones like it; one alone if shared.

    name  of the argument that says how many, for error messages; None takes as many as the sequence has
    """
    if isinstance(inner, str) or not isinstance(inner, Quantizer | Sequence):
        raise ValueError(f"inner={inner!r}: expected a quantizer, or a sequence of {name} of them")
    if count is None and isinstance(inner, Quantizer):
        raise ValueError(f"{name}=None: one inner quantizer does not say how many there are; give {name}")
    count = len(inner) if count is None and isinstance(inner, Sequence) else count
    if count is None or count < 1:
        raise ValueError(f"{name}={count}: expected at least 1")
    if isinstance(inner, Quantizer):
        first = checked_inner(inner)
        return [first, *(first.fresh() for _ in range(0 if shared else count - 1))]
    if shared:
        raise ValueError(f"shared=True with {len(inner)} inner quantizers: one that is shared is given once")
    if len(inner) != count:
        raise ValueError(f"{name}={count}: inner has {len(inner)} quantizers, expected as many")
    if len({id(quantizer) for quantizer in inner}) < count:
        raise ValueError("inner has one quantizer twice: give it once with shared=True, or build another")
    return [checked_inner(quantizer, f"inner[{i}]") for i, quantizer in enumerate(inner)]


def codes_in(out: Quantized) -> Tensor:
    """The codes of an inner quantizer's output: `checked_inner` lets in none without."""
    assert out.codes_BNS is not None
    return out.codes_BNS
