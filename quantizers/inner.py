"""The quantizers inside a composite one: built from plain data, checked, and given back as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from quantizers.base import Quantized, Quantizer

Options = Mapping[str, Any]


def build_inner(options: Options, where: str = "inner") -> Quantizer:
    """Build one inner quantizer; `ValueError` unless it has codes and treats every position on its own."""
    from quantizers.kinds import build  # kinds imports every family, this one included

    quantizer = build(options, where)
    if not quantizer.codes or not quantizer.pointwise:
        raise ValueError(
            f"{where}.kind = {quantizer.kind!r}: expected a quantizer with codes that treats every position on its own"
        )
    return quantizer


def build_inners(inner: Options | Sequence[Options], count: int, shared: bool, name: str) -> list[Quantizer]:
    """Build `count` quantizers from one mapping or from a sequence of as many; one instance where it is shared.

    name  of the argument that says how many, for error messages
    """
    if count < 1:
        raise ValueError(f"{name}={count}: expected at least 1")
    if isinstance(inner, Mapping):
        return [build_inner(inner) for _ in range(1 if shared else count)]
    if isinstance(inner, str) or not isinstance(inner, Sequence):
        raise ValueError(f"inner={inner!r}: expected the options of a quantizer, or a sequence of {name} of them")
    if shared:
        raise ValueError(f"shared=True with {len(inner)} inner quantizers: one that is shared is given once")
    if len(inner) != count:
        raise ValueError(f"{name}={count}: inner has {len(inner)} quantizers, expected as many")
    return [build_inner(options, f"inner[{i}]") for i, options in enumerate(inner)]


def inner_options(quantizers: Sequence[Quantizer], inner: Options | Sequence[Options]) -> Any:
    """Complete options of what was built, in the form that was given: one mapping or a list."""
    if isinstance(inner, Mapping):
        return quantizers[0].options()
    return [quantizer.options() for quantizer in quantizers]


def codes_in(out: Quantized) -> Tensor:
    """The codes of an inner quantizer's output: `build_inner` lets in none without."""
    assert out.codes_BNS is not None
    return out.codes_BNS
