"""Which implementation of a kernel runs: one decision, one override.

cuda     Triton kernels, for tensors on an NVIDIA GPU
native   C++ kernels, for tensors on a CPU, where a compiler (or its cached output) is found
torch    plain PyTorch in blocks, on any device: the reference that the others are tested against
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import torch

from quantizers.kernels import native

Backend = Literal["cuda", "native", "torch"]

_forced: ContextVar[Backend | None] = ContextVar("quantizers_kernels_backend", default=None)


def backend(device: torch.device) -> Backend:
    """Name the implementation that runs for tensors on this device."""
    forced = _forced.get()
    if forced is not None:
        return forced
    if device.type == "cpu":
        return "native" if native.available() else "torch"
    return "cuda" if device.type == "cuda" and _has_tensor_cores(device) else "torch"


@contextmanager
def using(name: Backend) -> Iterator[None]:
    """Force one implementation, for tests and comparisons: `with kernels.using("torch"): ...`."""
    if name not in ("cuda", "native", "torch"):
        raise ValueError(f"backend {name!r}: expected cuda, native or torch")
    if name == "native" and not native.available():
        raise ValueError(f"backend 'native' is not available: {native.why_not()}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Whether the Triton kernels run there: Triton is installed, and the GPU is NVIDIA's, from the A100 on."""
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
