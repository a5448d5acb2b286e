"""Torch pickles that hold python objects beside their tensors, read without running anything of theirs.

A pickle is a program: it names functions and calls them. Torch's restricted reader (`weights_only=True`) calls only
what rebuilds tensors, and refuses every other name. Lightning, omegaconf and argparse leave harmless objects in
checkpoints (callbacks, configurations, arguments), so that reader refuses many released tokenizers. Here each such name
becomes a stand-in: a class made on the spot that keeps what the pickle hands it and does nothing. Nothing is ever
imported by a name found in a file, so a name that smuggles something else (`omegaconf.os.system`) is as inert.
"""

from __future__ import annotations

import io
import pickletools
import re
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from tokenizers_mm.weights.errors import CheckpointError

# Packages whose objects stand beside the tensors of released tokenizers.
_ROOTS = frozenset({"lightning", "lightning_fabric", "lightning_utilities", "omegaconf", "pytorch_lightning", "typing"})
_BUILTINS = ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple")
_PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
# Single names: what those objects hold in turn, and what training scripts store beside a state dict.
_NAMES = frozenset(
    ["argparse.Namespace", "datetime.datetime", "datetime.timedelta", "numpy.dtype", "numpy.ndarray"]
    + ["_operator.getitem", "operator.getitem"]  # how Dict[str, Any] is pickled
    + [f"builtins.{name}" for name in _BUILTINS]
    + [f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS]
    + [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
)
# Torch fills only plain dictionaries and lists, so the stand-ins of these make those.
_MAPPINGS = frozenset(
    ["collections.defaultdict"]
    + [f"{root}.utilities.parsing.AttributeDict" for root in ("pytorch_lightning", "lightning.pytorch")]
    + [f"{root}.utilities.data.AttributeDict" for root in ("lightning_fabric", "lightning.fabric")]
)
_SEQUENCES = frozenset({"collections.deque"})
# Names outside torch that its reader knows by itself; those inside torch are its own to judge.
_TORCH_KNOWS = frozenset(
    ["collections.OrderedDict", "collections.Counter", "_codecs.encode"]
    + [f"builtins.{name}" for name in ("bytearray", "complex", "set")]
)
_EXPECTED = "expected tensors, plain values and objects of Lightning, omegaconf and argparse"
_REMEDY = "on a machine where you trust the file, load it there and save its tensors as safetensors"
_LOCK = threading.Lock()  # torch's table of further names belongs to the process


class StandIn:
    """In place of an object whose class is not imported: `args` and `state` are what the pickle gave it."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> StandIn:  # noqa: D102
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<stand-in for {type(self).__module__}.{type(self).__qualname__}>"


class _Mapping:
    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]  # another class's instance, on purpose
        return OrderedDict()


class _Sequence:
    def __new__(cls, *_: Any) -> list[Any]:  # type: ignore[misc]
        return []


def load(path: Path, *, mmap: bool) -> Any:
    """Whatever `torch.save` wrote into `path`, on the CPU, with stand-ins for the objects named above.

    `mmap` maps the tensors instead of reading them; it is for zip files in which nothing is compressed. Runs no code of
    the file. Raises `CheckpointError` for one that calls for anything else or that torch cannot read.
    """
    try:
        names = sorted({name for stream in _streams(path) for name in _globals(stream)})
    except Exception as error:  # a broken or hostile pickle raises whatever it likes
        raise CheckpointError(_unreadable(path, error)) from error
    stand_ins = _stand_ins(path, names)
    with _LOCK:
        # what the program itself told torch to trust stays what it is
        trusted = {e[1] if isinstance(e, tuple) else _name_of(e) for e in torch.serialization.get_safe_globals()}
        offered: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
        offered = [(made, name) for name, made in stand_ins.items() if name not in trusted]
        try:
            with torch.serialization.safe_globals(offered):
                if path.suffix == ".safetensors":  # which torch goes by, whatever is inside; not for an open file
                    with path.open("rb") as file:
                        return torch.load(file, weights_only=True, map_location="cpu")
                return torch.load(path, weights_only=True, mmap=mmap, map_location="cpu")
        except Exception as error:
            raise CheckpointError(_unreadable(path, error)) from error


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _stand_ins(path: Path, names: list[str]) -> dict[str, type]:
    """A stand-in for each name that gets one; `CheckpointError` tells those that neither we nor torch know."""
    inert = [name for name in names if name.split(".")[0] in _ROOTS or name in _NAMES | _MAPPINGS | _SEQUENCES]
    refused = [n for n in names if n not in inert and n not in _TORCH_KNOWS and n.split(".")[0] != "torch"]
    if refused:
        listed = ", ".join(map(repr, refused[:4])) + (f" and {len(refused) - 4} more" if len(refused) > 4 else "")
        raise CheckpointError(_forbidden(path, listed))
    made = {}
    for full_name in inert:
        base = _Mapping if full_name in _MAPPINGS else _Sequence if full_name in _SEQUENCES else StandIn
        module, _, name = full_name.rpartition(".")
        made[full_name] = type(name, (base,), {"__module__": module})
    return made


def _streams(path: Path) -> Iterator[IO[bytes]]:
    """Streams of the pickle programs in the file: those in a zip's members, or the file itself."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # torch's own test
            file.seek(0)
            yield file
            return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.split("/")[-1] == "data.pkl":
                yield io.BytesIO(archive.read(name))


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """`module.name` of every global that the stream's pickles push, found without executing them.

    The older format is a row of pickles before the bytes: magic number, protocol, system, the object. Torch's reader
    decides what is called; this only decides which stand-ins it is offered, and names the rest.
    """
    for _ in range(1 if isinstance(stream, io.BytesIO) else 4):
        pushed: list[str] = []
        memo: list[str] = []
        for opcode, arg, _position in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                yield _python3_name(*str(arg).split(" ", 1))
            elif opcode.name == "STACK_GLOBAL":  # joins the last two strings
                yield ".".join(pushed[-2:])
            elif opcode.name == "MEMOIZE":
                memo.append(pushed[-1] if pushed else "")
            elif opcode.name in ("BINGET", "LONG_BINGET"):
                pushed += [memo[index] for index in [int(str(arg))] if index < len(memo)]
            elif isinstance(arg, str):
                pushed = [*pushed[-1:], arg]


def _python3_name(module: str, name: str) -> str:
    """Protocol 2 writes the names of Python 2; torch's reader looks up those of Python 3."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _forbidden(path: Path, names: str) -> str:
    return f"{path}: its pickle calls for {names}, code that reading would run; {_EXPECTED}; {_REMEDY}"


def _unreadable(path: Path, error: Exception) -> str:
    unknown = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
    if unknown:
        return _forbidden(path, repr(unknown[1]))
    # torch puts its advice to load the file unsafely before what it found, and a link after it
    text = str(error).split("WeightsUnpickler error:")[-1].split("Check the documentation")[0]
    found = f"{type(error).__name__}: {' '.join(text.split())[-200:]}"
    return (
        f"{path}: its pickle is broken or holds more than tensors ({found}); {_EXPECTED}; copy it again, or {_REMEDY}"
    )
