"""SHA-256 over what a Python object holds, for tokenizers whose class is none of ours.

Attributes are walked down to numbers, texts, arrays and tensors. Equal state gives equal digests in every process and
on every device: nothing depends on addresses, the order in which attributes were set, or the order of a set.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenizers_mm.api import TokenSpec

__all__ = ["object_digest", "qualified_name"]

_WRITTEN_OUT = (bool, int, float, complex, str, bytes, bytearray, range, slice, PurePath, torch.dtype, type(...))
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, functools._lru_cache_wrapper, np.ufunc)
# Modules of tokenizers of ours around others, under the names that older fingerprints were made with.
_FORMERLY = {"tokenizers_mm.models.fused": "tokenizers_mm.fused", "tokenizers_mm.models.tiled": "tokenizers_mm.tiled"}
# What torch keeps in every module beside its contents: mode and hooks; and what compilation leaves there.
_COMPILATION = {"_compiled_call_impl", "_is_torch_compile"}
_BOOKKEEPING = (vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}) | _COMPILATION


def object_digest(value: object, known: Callable[[object], str | None] = lambda _: None) -> str:
    """SHA-256 in hexadecimal over class names and state of an object and of everything in it.

    known  the digest of objects that have one of their own, None for others

    Code is not read: functions and classes count by name (functions with what they captured), devices not at all.
    Raises `ValueError` naming the attribute that holds something whose state cannot be seen from Python.
    """
    return _Walk(known).digest(value, type(value).__name__).hex()


def qualified_name(value: Any) -> str:
    """Module and name of a class or function; the module's first name where one of ours has moved since."""
    module = getattr(value, "__module__", "")
    return f"{_FORMERLY.get(module, module)}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _sha(*parts: Any) -> bytes:
    """Of texts and flat buffers, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        view = memoryview(part.encode() if isinstance(part, str) else part)
        digest.update(view.nbytes.to_bytes(8, "big"))
        digest.update(view)
    return digest.digest()


class _Walk:
    """Digests of composite objects, each once; `open` are those that the walk is inside of, for loops."""

    def __init__(self, known: Callable[[object], str | None]) -> None:
        self.known = known
        self.open: dict[int, int] = {}
        self.done: dict[int, bytes] = {}
        self.kept: list[object] = []  # alive, so that no other object gets its id

    def digest(self, value: Any, where: str) -> bytes:
        """Of any value; `where` names it in errors."""
        if isinstance(value, Enum):
            return _sha("enum", qualified_name(type(value)), value.name)
        if value is None or isinstance(value, _WRITTEN_OUT):
            return _sha("value", qualified_name(type(value)), repr(value))
        if isinstance(value, torch.device):
            return _sha("device")
        if isinstance(value, Tensor):
            return _tensor(value, where)
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return _sha("array", str(value.dtype), str(value.shape), _bytes(value))
        if id(value) in self.open:
            return _sha("loop", str(len(self.open) - self.open[id(value)]))
        if id(value) not in self.done:
            self.kept.append(value)
            self.open[id(value)] = len(self.open)
            self.done[id(value)] = _sha(*self._parts(value, where))
            del self.open[id(value)]
        return self.done[id(value)]

    def _parts(self, value: Any, where: str) -> Iterable[Any]:
        """What a composite object consists of, as texts and digests."""
        own = self.known(value)
        if own is not None:
            return ["known", own]
        if isinstance(value, nn.Module):  # the one that was compiled, where one was
            value = getattr(value, "_orig_mod", value)
        elif isinstance(value, types.FunctionType):
            value = getattr(value, "_torchdynamo_orig_callable", value)
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if isinstance(value, types.MethodType):
            return ["method", self.digest(value.__func__, where), self.digest(value.__self__, where)]
        if isinstance(value, functools.partial):
            return ["partial", *self._items((value.func, value.args, value.keywords), where)]
        if isinstance(value, _NAMED):
            cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _filled(cell)]
            return ["name", qualified_name(value), *self._items(cells, where)]
        return [qualified_name(type(value)), *self._contents(value, where)]

    def _contents(self, value: Any, where: str) -> Iterable[bytes]:
        if isinstance(value, torch.jit.ScriptModule):
            yield from self._mapping(value.state_dict(), where)
            return
        attributes = _attributes(value)
        if isinstance(value, Mapping):
            yield from self._mapping(value, where)
        elif isinstance(value, list | tuple | deque):
            yield from self._items(value, where)
        elif isinstance(value, set | frozenset):
            yield from sorted(self._items(value, where))
        elif isinstance(value, np.ndarray):
            yield from (_sha(str(value.shape)), *self._items(value.reshape(-1).tolist(), where))
        elif attributes is None:
            raise ValueError(
                f"{where} is a {qualified_name(type(value))}, whose state cannot be seen from Python: give the "
                "tokenizer a `fingerprint`, a text (or a method that returns one) that changes with its tokens"
            )
        for name, part in sorted((attributes or {}).items()):
            yield _sha(name, self.digest(part, f"{where}.{name}"))

    def _mapping(self, value: Mapping[Any, Any], where: str) -> list[bytes]:
        return sorted(
            _sha(self.digest(key, where), self.digest(part, f"{where}[{key!r}]")) for key, part in value.items()
        )

    def _items(self, values: Iterable[Any], where: str) -> list[bytes]:
        return [self.digest(part, f"{where}[{number}]") for number, part in enumerate(values)]


def _attributes(value: Any) -> dict[str, Any] | None:
    """What is set on an object, in its dictionary and its slots; None where it can have neither."""
    slotted = [kind for kind in type(value).__mro__ if "__slots__" in vars(kind)]
    if not hasattr(value, "__dict__") and not slotted and type(value) is not object:
        return None
    if isinstance(value, TokenSpec):
        return value.identity()
    slots = (item for kind in slotted for item in vars(kind).items() if isinstance(item[1], types.MemberDescriptorType))
    found = {name: getattr(value, name) for name, _ in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    if isinstance(value, nn.Module):
        return {name: part for name, part in found.items() if name not in _BOOKKEEPING}
    return found


def _tensor(value: Tensor, where: str) -> bytes:
    if value.is_meta:
        raise ValueError(f"{where} is a tensor on the meta device, which has no values: load its weights first")
    value = value.detach().cpu()
    value = value if value.layout == torch.strided else value.to_dense()
    value = value.resolve_conj().resolve_neg().contiguous()
    return _sha("tensor", str(value.dtype), str(tuple(value.shape)), value.view(-1).view(torch.uint8).numpy())


def _bytes(value: Any) -> Any:
    """A numpy array or number as a flat array of bytes."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _filled(cell: types.CellType) -> bool:
    """Whether a captured name has been given a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
