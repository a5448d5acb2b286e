"""The library of C++ kernels: for AVX-512, for AVX2 and for any processor; which one runs is decided at each call."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from quantizers.kernels.native.build import NativeLibrary

__all__ = ["KERNELS", "available", "library", "pointer", "why_not"]

KERNELS = NativeLibrary(
    Path(__file__).parent,
    "kernels",
    {
        "tmm_best_isa": "=i",
        "tmm_nearest": "pppnnniii",
        "tmm_residual_encode": "pppppnnnii",
        "tmm_sign_quantize": "pppnifiii",
        "tmm_scalar_quantize": "pppppppnnnii",
    },
)
available, why_not, library = KERNELS.available, KERNELS.why_not, KERNELS.library


def pointer(tensor: Tensor) -> int:
    """Address of a contiguous tensor's data."""
    assert tensor.is_contiguous()
    return tensor.data_ptr()
