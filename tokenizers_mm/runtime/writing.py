"""Atomic writes: files that appear whole or not at all, and one error for those that cannot be written."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "WriteError",
    "append_text",
    "quiet_tracker_threads",
    "separate",
    "whole_file",
    "write_tensors",
    "write_text",
    "writing",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NUMBER = re.compile(r"os error (\d+)")


class WriteError(OSError):
    """Something cannot be written; the message names the path, the reason and what to do.

    after  what the message ends with: the state that is left, how to go on
    """

    def __init__(self, path: Path | str, reason: str, remedy: str, after: str = "") -> None:
        super().__init__(f"{path}: cannot be written ({reason}); {remedy}{after}")
        self.path, self.reason, self.remedy, self.after = path, reason, remedy, after

    def then(self, after: str) -> WriteError:
        """The same error with more to say at its end."""
        return WriteError(self.path, self.reason, self.remedy, self.after + after)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Inside the block errors of the disk, of which safetensors has its own kind, become a `WriteError` of `path`."""
    try:
        yield
    except (WriteError, ConnectionError):  # of a tracker that writes elsewhere
        raise
    except (OSError, SafetensorError) as error:
        number = _number(error)
        reason = os.strerror(number) if number else str(error)
        remedy = "free space there" if number in _FULL else "make it writable"
        raise WriteError(path, reason, remedy) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to. `path` appears when the block ends well, else nothing is left.

    Raises `WriteError` naming `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole; raises `WriteError`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file all of a text, or nothing; raises `WriteError`."""
    before = path.stat().st_size if path.exists() else 0
    with writing(path):
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except BaseException:
            if path.exists():
                os.truncate(path, before)
            raise


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whole; tensors may share memory. Raises `WriteError`."""
    with whole_file(path) as partial:
        save_file(separate(state), partial)


def separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, which safetensors refuses."""
    seen: set[int] = set()
    apart = {}
    for name, value in state.items():
        value = value.detach().contiguous()
        apart[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return apart


@contextmanager
def quiet_tracker_threads() -> Iterator[None]:
    """Inside the block no traceback is shown of TensorBoard's writing thread: its next call raises the error again."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _number(error: OSError | SafetensorError) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else 0
