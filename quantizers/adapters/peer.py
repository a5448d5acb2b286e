"""The peer library: importing it when it is needed, and running its modules in one layout and one mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

PACKAGE = "vector_quantize_pytorch"

# Its modules take channels first or last by these attributes, and some leave their indices out. HierarchicalVQ is not
# among them: its layout is fixed when it is built.
_SEQUENCES: dict[str, Any] = {
    "channel_last": True,
    "channel_first": False,
    "is_channel_first": False,
    "accept_image_fmap": False,
    "accept_3d_fmap": False,
    "return_indices": True,
}
# ResidualVQ adds the noise of DiVeQ in evaluation too: what comes out is then not what its codes stand for.
_EVALUATION: dict[str, Any] = {"diveq": False}


def peer() -> ModuleType:
    """Return the package vector_quantize_pytorch; `ImportError` says how to get it."""
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise ImportError(f"{PACKAGE} is not installed: pip install 'vector-quantize-pytorch>=1.32,<2'") from error
    return vector_quantize_pytorch  # type: ignore[no-any-return]


def is_peer(module: nn.Module) -> bool:
    """Whether the module's class is one of the package, and not a subclass, which may do anything."""
    return _of_package(type(module))


def name_of(module: nn.Module) -> str:
    """Name of the package's class that the module is an instance of, "" for other modules."""
    return next((cls.__name__ for cls in type(module).__mro__ if _of_package(cls)), "")


def _of_package(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == PACKAGE


@contextmanager
def as_sequences(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Let a module of the package take and give [batch, position, channel], with indices, in the mode given.

    Several of its classes break in one layout or another; in this one all work.
    """
    modes = [(part, part.training) for part in module.modules()]
    options = [
        (part, name, getattr(part, name), value)
        for part in module.modules()
        if name_of(part) not in ("", "HierarchicalVQ")
        for name, value in (_SEQUENCES | ({} if part.training and training else _EVALUATION)).items()
        if hasattr(part, name)
    ]
    for part, mode in modes:
        part.training = mode and training
    for part, name, _, value in options:
        setattr(part, name, value)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for part, name, before, _ in options:
            setattr(part, name, before)
