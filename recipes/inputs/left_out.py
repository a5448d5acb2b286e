"""Images that a measurement leaves out because they cannot be read: counted, named, and limited to a share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from tokenizers_mm.data import ALLOWED_SHARE, ImageError, Unreadable, check_share

__all__ = ["LeftOut"]

_NAMED = 3


class LeftOut:
    """Images of one measurement that could not be read, by what they were for: images, train, probe, ...

    allowed  share of the images of every folder that may be left out
    warn     is called with a line for each of the first of every folder, and by `end` with how many there were
    """

    def __init__(self, allowed: float = ALLOWED_SHARE, warn: Callable[[str], None] = warnings.warn) -> None:
        check_share("max_unreadable", allowed)
        self.allowed, self.warn = allowed, warn
        self._counters: dict[tuple[str, str], Unreadable] = {}
        self._said: set[str] = set()

    def counter(self, purpose: str) -> Callable[[str | Path, int], Unreadable]:
        """From a folder and its number of images to their counter: the same one whenever they are read again."""

        def make(where: str | Path, total: int) -> Unreadable:
            key, first = (purpose, str(where)), iter(range(_NAMED))

            def report(error: ImageError) -> None:
                if next(first, None) is not None:
                    self._say(f"{error}; left out")

            if key not in self._counters:
                remedy = "repair or remove them, or allow more (--max-unreadable)"
                self._counters[key] = Unreadable(where, total, self.allowed, report=report, remedy=remedy)
            return self._counters[key]

        return make

    def end(self) -> None:
        """Say how many were left out, where not all of them were named."""
        for counter in self._counters.values():
            if len(counter) > _NAMED:
                self._say(f"{counter.where}: {len(counter)} of {counter.total} images cannot be read and are left out")

    def errors(self) -> dict[str, tuple[str, ...]]:
        """What was wrong with each image, by purpose; those for which none was left out are missing."""
        found: dict[str, tuple[str, ...]] = {}
        for (purpose, _), counter in self._counters.items():
            if counter.errors:
                found[purpose] = (*found.get(purpose, ()), *map(str, counter.errors.values()))
        return found

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.warn(text)
