"""The images that a token store does not hold: how many of how many, why, and what can be done about it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers_mm.data import check_share, too_many

__all__ = ["Quarantine"]

# What differs between errors of one kind: numbers, and what is quoted.
_PARTICULARS = re.compile(r"b?'[^']*'|b?\"[^\"]*\"|\d+")
_SHOWN = 5


@dataclass(frozen=True)
class Quarantine:
    """Quarantined images of a whole store, whichever run met them.

    inputs      images that the store was made of;  count  those of them that it does not hold
    reasons     stage and error of the first image of every kind, and how many there are; the most frequent first
    other_size  most of them have another size than the images before them, and were not resized
    """

    inputs: int = 0
    count: int = 0
    reasons: tuple[tuple[str, int], ...] = ()
    other_size: bool = False

    @classmethod
    def of(cls, items: Iterable[Mapping[str, Any]], inputs: int, preprocess: str) -> Quarantine:
        """From the `quarantined` entries of the shards' records, and the JSON of the store's `Preprocess`."""
        kinds, first = Counter[tuple[str, str]](), dict[tuple[str, str], str]()
        for item in items:
            kind = (item["stage"], _PARTICULARS.sub("#", item["error"]))
            kinds[kind] += 1
            first.setdefault(kind, f"{item['stage']}: {item['error']}")
        ranked = kinds.most_common()
        other_size = bool(ranked) and ranked[0][0][0] == "preprocess" and json.loads(preprocess)["size"] is None
        return cls(inputs, kinds.total(), tuple((first[kind], number) for kind, number in ranked), other_size)

    @property
    def share(self) -> float:
        """Of the inputs, in [0, 1]."""
        return self.count / self.inputs if self.inputs else 0.0

    def complaint(self, allowed: float) -> tuple[str, ...]:
        """Lines that say how many, why and what to do, where they are more than this share; else nothing."""
        check_share("max_quarantined", allowed)
        if not too_many(self.count, self.inputs, allowed):
            return ()
        reasons = [f"  {number} x {reason}" for reason, number in self.reasons[:_SHOWN]]
        more = len(self.reasons) - _SHOWN
        return (
            f"{self.count} of {self.inputs} images ({self.share:.1%}) are quarantined, more than the share of "
            f"{allowed:g} that is allowed:",
            *reasons,
            *([f"  and {more} other reasons"] if more > 0 else []),
            "a store holds images of one size: encode with `--size N` into a new folder, which resizes and crops them"
            if self.other_size
            else "repair or remove these images and encode into a new folder, or allow more with `--max-quarantined`",
        )
