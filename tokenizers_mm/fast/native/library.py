"""The library of C++ convolutions, built and cached as that of the quantizers' kernels."""

from __future__ import annotations

from pathlib import Path

from quantizers.kernels.native.build import NativeLibrary

__all__ = ["CONVOLUTIONS", "available", "library", "why_not"]

_SHAPE = "nnnnniiii"
CONVOLUTIONS = NativeLibrary(
    Path(__file__).parent,
    "convolutions",
    {"tmm_scratch": _SHAPE + "=n", "tmm_convolve": "ppppppppp" + _SHAPE, "tmm_channel_sums": "ppnnnii"},
)
available, why_not, library = CONVOLUTIONS.available, CONVOLUTIONS.why_not, CONVOLUTIONS.library
