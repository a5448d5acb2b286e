"""What files with weights are called, and which format their first bytes tell; no tensor is read, no torch imported."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from tokenizers_mm.weights.errors import CheckpointError

__all__ = [
    "AGAIN",
    "EXPECTED",
    "INNER_FOLDERS",
    "PICKLE_NAMES",
    "SAFETENSORS_NAMES",
    "WEIGHT_SUFFIXES",
    "Format",
    "broken",
    "format_of",
    "unreadable",
]

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# How diffusers and transformers call a folder's one model, best first.
SAFETENSORS_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
PICKLE_NAMES = ("diffusion_pytorch_model.bin", "pytorch_model.bin")
# Where diffusers' pipelines keep their tokenizer.
INNER_FOLDERS = ("vae", "vqvae", "movq")

EXPECTED = "expected a safetensors file, one from torch.save, or a shard index (*.index.json)"
AGAIN = "copy or download it again"
_LOG_IN = "download it again, logged in where the site asks for it"
_UNPACK = "unpack it and give the file inside"
# What else arrives under the name of a weights file: first bytes (lower case), what it is, what to do.
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the weights", "run `git lfs pull` where it was cloned"),
    (b"<!doctype html", "an HTML page", _LOG_IN),
    (b"<html", "an HTML page", _LOG_IN),
    (b"<?xml", "an XML page", _LOG_IN),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"\x89hdf", "an HDF5 file", "save its tensors as safetensors"),
    (b"gguf", "a GGUF file", "give the safetensors that it was made from"),
    (b"\x93numpy", "a numpy array", "save its tensors as safetensors"),
    (b"\x80", "a python pickle that torch.save did not write", "load it where you trust it, save safetensors"),
)
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of torch.save before zip files
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format

Format: TypeAlias = Literal["safetensors", "torch zip", "torch legacy", "index"]


def format_of(path: Path) -> Format:
    """The format of a file, whatever its name says; `CheckpointError` naming what it is where it is none of these."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise unreadable(path, error) from error
    if not head:
        raise CheckpointError(f"{path}: empty (0 bytes); {EXPECTED}; {AGAIN}")
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= _LONGEST_HEADER:
        if header + 8 > size:
            raise broken(path, f"its header takes {header} bytes, the file ends after {size}")
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _zip_format(path)
    if head.startswith(_TORCH_LEGACY):
        return "torch legacy"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"{"):
        return "index"
    for start, what, remedy in _OTHERS:
        if text.startswith(start):
            raise CheckpointError(f"{path}: {what}; {EXPECTED}; {remedy}")
    raise CheckpointError(f"{path}: of no known format ({size} bytes, first {head[:9]!r}); {EXPECTED}; {AGAIN}")


def _zip_format(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name.split("/")[-1] for name in archive.namelist()]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path}: a zip archive cut short or damaged ({error}); {EXPECTED}; {AGAIN}") from error
    if "constants.pkl" in members:
        raise CheckpointError(
            f"{path}: a TorchScript archive, which is a program; {EXPECTED}; on a machine where you trust it, load it "
            "with torch.jit.load and save its state_dict() as safetensors"
        )
    if "data.pkl" not in members:
        raise CheckpointError(f"{path}: a zip archive of {', '.join(members[:4])}; {EXPECTED}; {_UNPACK}")
    return "torch zip"


def broken(path: Path, found: Exception | str) -> CheckpointError:
    """The error for safetensors that are cut short or damaged."""
    return CheckpointError(f"{path}: broken safetensors ({' '.join(str(found).split())}); expected all of it; {AGAIN}")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for what the system answers to opening a path."""
    if isinstance(error, PermissionError):
        return CheckpointError(f"{path}: cannot be read ({error.strerror}); expected read permission; `chmod u+r` it")
    if isinstance(error, FileNotFoundError):
        what = "a link to a missing file" if path.is_symlink() else "no such file or folder"
        return CheckpointError(f"{path}: {what}; {EXPECTED}, or a folder with one; check the path, or download it")
    return CheckpointError(f"{path}: cannot be read ({error.strerror}); {EXPECTED}; {AGAIN}")
