"""Which implementation of a kernel runs: one decision, one override; and how little of torch it takes.

cuda     Triton kernels, for tensors on an NVIDIA GPU
native   C++ kernels, for tensors on a CPU, where a compiler (or its cached output) is found
torch    plain PyTorch in blocks, on any device: the reference that the others are tested against
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from quantizers.kernels import native

Backend = Literal["cuda", "native", "torch"]
_COMPILER = "torch._dynamo"

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


class Operation:
    """A custom op without gradients, by its full name, that is a plain call where nothing looks at operations.

    The first call of a `torch.library.custom_op` imports torch._dynamo, which takes nearly as long as importing torch:
    a process that encodes images, and neither trains nor compiles, has no other use for it.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.function, self.op = function, torch.library.custom_op(name, function, mutates_args=())
        self.register_fake = self.op.register_fake

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        if torch.compiler.is_compiling() or _watched(arguments):
            return self.op(*arguments)
        return self.function(*arguments)


def operation(name: str) -> Callable[[Callable[..., Any]], Operation]:
    """Make an `Operation` of a function, whose annotations say its schema."""
    return lambda function: Operation(name, function)


def _watched(arguments: Iterable[Any]) -> bool:
    """Whether something traces, compiles or counts operations, or may: then it has to see them as such."""
    if _COMPILER in sys.modules or torch._C._get_tracing_state() or is_in_torch_dispatch_mode():
        return True
    tensors = [tensor for value in arguments for tensor in (value if isinstance(value, list) else [value])]
    return any(isinstance(tensor, Tensor) and type(tensor) is not Tensor for tensor in tensors)


@cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Whether the Triton kernels run there: Triton is installed, and the GPU is NVIDIA's, from the A100 on."""
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
