"""Regular samples of a sequence: every n-th item, or items at even distances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

__all__ = ["evenly_spaced", "strided"]

T = TypeVar("T")


def strided(items: Iterable[T], most: int) -> list[T]:
    """Every, every second, every fourth ... item from the first: as many as `most` (2 or more) allows, however many."""
    kept: list[T] = []
    stride = 1
    for number, item in enumerate(items):
        if number % stride:
            continue
        if len(kept) == most:
            kept, stride = kept[::2], 2 * stride
            if number % stride:
                continue
        kept.append(item)
    return kept


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """So many of them, at even distances, first and last included."""
    index = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[number] for number in index]
