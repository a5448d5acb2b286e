"""Ranking by a figure: who is best, at what rate, and how many times the bits of the next best that takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recipes.compare.comparison import Measured

__all__ = ["RULE", "best_at_each_rate", "counted_rate", "headlines", "in_digits"]

_EQUAL = 1.25  # rates within this factor are taken for equal

RULE = (
    f"Who is called best at the top: rates within a factor of {_EQUAL} count as equal; where the winner has more bits "
    "than that, the best with fewer is named beside it, and how many times fewer. Codes are counted in full, Gaussian "
    "latents by their KL divergence, other latents as 16 bits a channel."
)


@dataclass(frozen=True)
class _Figure:
    """A figure that the page opens with: how a winner among several is announced, a single one, and its short name."""

    name: str
    unit: str
    winner: str
    single: str
    label: str
    floor: str = ""


_FIGURES = (
    _Figure("PSNR", "dB", "Closest to the pixels", "PSNR", "PSNR"),
    _Figure(
        "Linear probe", "%", "Best at telling what is in them by a linear probe", "Linear probe of what is in them",
        "linear probe", "Most frequent class",
    ),
)  # fmt: skip


def counted_rate(one: Measured) -> float:
    """Bits per pixel that a tokenizer is charged: codes in full, latents by their KL, or else 16 bits a channel.

    What a continuous latent costs is its KL; 16 bits a channel would flatter whatever it is compared with.
    """
    return one.rate if one.entry.spec.discrete else one.spent or one.rate


def in_digits(rate: float) -> str:
    """A rate in bits per pixel, with three digits."""
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"


def best_at_each_rate(tokenizers: Sequence[Measured], name: str) -> list[Measured]:
    """The tokenizer whose figure of that name is highest, then the best of those with fewer bits, and so on down.

    Fewer means by more than the factor within which rates count as equal. Of equal figures that with the fewest bits
    stands for all. Tokenizers without the figure are left out.
    """
    found = [(one, value) for one in tokenizers if (value := one.value(name)) is not None]
    best: list[Measured] = []
    while found:
        first, _ = max(found, key=lambda pair: (pair[1], -counted_rate(pair[0])))
        best.append(first)
        found = [pair for pair in found if counted_rate(pair[0]) * _EQUAL < counted_rate(first)]
    return best


def headlines(tokenizers: Sequence[Measured]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Of every figure that the page opens with and that was measured: a sentence, and a fact (number, what it is)."""
    for figure in _FIGURES:
        ranked = best_at_each_rate(tokenizers, figure.name)
        if ranked:
            several = sum(one.value(figure.name) is not None for one in tokenizers) > 1
            yield _sentence(figure, ranked, several), _fact(figure, ranked, several)


def _sentence(figure: _Figure, ranked: Sequence[Measured], several: bool) -> str:
    first, *cheaper = ranked
    costs = [
        f"{_times(first, one)} times the bits of {one.entry.name} ({_value(one, figure)} at {_rate(one)})"
        for one in cheaper
    ]
    told = [f"{_value(first, figure)} by {first.entry.name} at {_rate(first)}", *costs]
    floor = f"; always the most frequent class: {first.value(figure.floor):.1f} %" if figure.floor else ""
    return f"{figure.winner if several else figure.single}: {', '.join(told)}{floor}."


def _fact(figure: _Figure, ranked: Sequence[Measured], several: bool) -> tuple[str, str]:
    first, *cheaper = ranked
    label = f"{'highest ' if several else ''}{figure.label}, {first.entry.name} at {_rate(first)}"
    for one in cheaper[:1]:
        label += f", {_times(first, one)} times the bits of {one.entry.name} ({_value(one, figure)})"
    return _value(first, figure), label


def _value(one: Measured, figure: _Figure) -> str:
    return f"{one.value(figure.name):.1f} {figure.unit}"


def _rate(one: Measured) -> str:
    """With its unit, and how it was counted where it is not that of codes."""
    how = "" if one.entry.spec.discrete else " (KL)" if one.spent else " (16 bits a channel)"
    return f"{in_digits(counted_rate(one))} bits per pixel{how}"


def _times(one: Measured, other: Measured) -> str:
    ratio = counted_rate(one) / counted_rate(other)
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}"
