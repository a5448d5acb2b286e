"""The C++ convolutions, built once and cached as `quantizers.kernels.native` does; else PyTorch serves."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from quantizers.kernels.native.library import attempt, build as build_from, cache_folder, load as load_with

SOURCES = Path(__file__).parent
# Argument types of the entry points in convolutions.cpp: p a pointer, n an int64, i an int.
_SHAPE = "nnnnniiii"
_SIGNATURES = {"tmm_scratch": _SHAPE + "=n", "tmm_convolve": "ppppppppp" + _SHAPE, "tmm_channel_sums": "ppnnnii"}


def available() -> bool:
    """Whether the C++ convolutions can be used; the first call may compile them, which takes some seconds."""
    return library() is not None


def why_not() -> str:
    """Why they are not available; empty if they are."""
    return _load()[1]


def library() -> ctypes.CDLL | None:
    """Return the loaded library, or None."""
    return _load()[0]


def build(folder: Path, *extra: str) -> Path:
    """Compile into the folder unless that was done before, with more compiler flags; returns the library's path."""
    return build_from(folder, *extra, sources=SOURCES, name="convolutions")


def load(path: Path) -> ctypes.CDLL:
    """Load a compiled library and state the types of its functions."""
    return load_with(path, _SIGNATURES)


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    return attempt(lambda: load(build(cache_folder())), "convolutions")
