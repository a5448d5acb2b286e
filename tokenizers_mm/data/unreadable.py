"""Unreadable images of a data set: each is named once, and too many of them end the run.

One broken file among thousands must not end hours of training; a folder in which every tenth file is broken must not
be used without a word. So what meets such files skips, counts and names them, up to a stated share.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers_mm.data.images import ImageError

__all__ = ["ALLOWED_SHARE", "TooManyUnreadable", "Unreadable", "check_share", "too_many"]

ALLOWED_SHARE = 0.1


class TooManyUnreadable(ValueError):
    """More images could not be used than the share that is allowed; the message names the first and the remedy."""


def check_share(name: str, allowed: float) -> None:
    """Raise `ValueError` unless `allowed` is a share."""
    if not 0 <= allowed <= 1:
        raise ValueError(f"{name}={allowed}: expected a share of the images in [0, 1]")


def too_many(bad: int, total: int, allowed: float) -> bool:
    """Whether `bad` of `total` images are more than the share `allowed`; one alone is not, unless none is."""
    return bad > (max(1.0, allowed * total) if allowed else 0)


class Unreadable:
    """The images of one data set that could not be used so far: path -> error, in the order they were met.

    total    images of the data set
    allowed  share of them that may be unreadable
    report   called once for every unreadable image
    remedy   what the user can do to go on, the end of the error's message
    """

    def __init__(
        self,
        where: str | Path,
        total: int,
        allowed: float = ALLOWED_SHARE,
        *,
        report: Callable[[ImageError], None] = lambda _: None,
        remedy: str = "repair or remove them",
    ) -> None:
        check_share("allowed", allowed)
        self.where, self.total, self.allowed, self.report, self.remedy = where, total, allowed, report, remedy
        self.errors: dict[str, ImageError] = {}

    def __len__(self) -> int:
        return len(self.errors)

    def add(self, key: str, error: ImageError) -> None:
        """Count an image, named by `key`; raises `TooManyUnreadable` where that makes too many."""
        if key in self.errors:
            return
        self.errors[key] = error
        self.report(error)
        if too_many(len(self), self.total, self.allowed):
            raise TooManyUnreadable(
                f"{self.where}: {len(self)} of {self.total} images cannot be read, more than the share of "
                f"{self.allowed:g} that is allowed; the first: {next(iter(self.errors.values()))}; {self.remedy}"
            )

    def require_one(self) -> None:
        """Raise `TooManyUnreadable` where not a single image is left."""
        if self.errors and len(self) == self.total:
            raise TooManyUnreadable(
                f"{self.where}: none of its {self.total} images can be read; the first: "
                f"{next(iter(self.errors.values()))}"
            )
