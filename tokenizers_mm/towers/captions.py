"""Checks of captions: text encoders take a list of texts, none of them empty."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["checked_captions"]


def checked_captions(captions: Sequence[str]) -> list[str]:
    """The captions as a list; `ValueError` naming the first that is not a text or has nothing in it."""
    if isinstance(captions, str):
        raise ValueError(f"captions={captions[:40]!r}: expected a list of texts, one per image; wrap it in a list")
    if not len(captions):
        raise ValueError("captions are empty: expected one text per image")
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"captions[{index}] is {type(caption).__name__}: expected a text")
        if not caption.strip():
            raise ValueError(f"captions[{index}]={caption!r} is empty: give it words, or leave the image out")
    return list(captions)
