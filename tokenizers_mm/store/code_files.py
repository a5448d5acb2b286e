"""What a token store knows of its codes without their tokenizer: two optional files, whose hashes the manifest holds.

    codebook.safetensors   `codebook_VD`, the vector of every code, where a single stream has such a table
    quantizer.safetensors  the tensors of the quantizer; its options are in the manifest

Shape letters: V vocabulary, D channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import quantizers
from tokenizers_mm.api import Quantizer, TokenSpec
from tokenizers_mm.store.shards import commit, digest

__all__ = ["CODE_FILES", "read_codebook", "read_quantizer", "write_codebook", "write_quantizer"]

_CODEBOOK, _QUANTIZER = CODE_FILES = ("codebook.safetensors", "quantizer.safetensors")


def write_codebook(folder: Path, spec: TokenSpec, codebook_VD: Tensor) -> str:
    """Commit the table; its SHA-256. `ValueError` where it is none of this spec's."""
    if len(spec.codes) != 1 or tuple(codebook_VD.shape) != (spec.codes[0], spec.dim):
        raise ValueError(
            f"codebook_VD is {tuple(codebook_VD.shape)}: codes={spec.codes}, dim={spec.dim} need one stream and a "
            "table [V, D]"
        )
    return _write(folder / _CODEBOOK, {"codebook_VD": codebook_VD})


def read_codebook(folder: Path, sha256: str) -> Tensor:
    """Vectors of all codes [V, D]; `ValueError` where the file is missing or differs."""
    try:
        return _read(folder / _CODEBOOK, sha256)["codebook_VD"]
    except KeyError as error:
        raise ValueError(f"{folder / _CODEBOOK}: cannot be read ({error})") from error


def write_quantizer(folder: Path, spec: TokenSpec, quantizer: Quantizer) -> dict[str, Any]:
    """Commit the tensors; options and SHA-256, as `read_quantizer` takes them. `ValueError` for another spec's."""
    if (quantizer.codes, quantizer.dim) != (spec.codes, spec.dim):
        raise ValueError(
            f"quantizer has codes={quantizer.codes} and dim={quantizer.dim}, the tokens codes={spec.codes} and "
            f"dim={spec.dim}: give the one that made them"
        )
    return {"options": quantizer.options(), "sha256": _write(folder / _QUANTIZER, quantizer.state_dict())}


def read_quantizer(folder: Path, facts: dict[str, Any]) -> Quantizer:
    """The quantizer, built anew; it is in eval mode and nothing of it learns. `ValueError` as `read_codebook`."""
    tensors = _read(folder / _QUANTIZER, facts["sha256"])
    quantizer = quantizers.build(facts["options"], f"{folder}: quantizer")
    try:
        quantizer.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{folder / _QUANTIZER}: does not fit the options in the manifest ({error})") from error
    return quantizer.eval().requires_grad_(False)


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    commit(path, data)
    return digest(data)


def _read(path: Path, sha256: str) -> dict[str, Tensor]:
    data = path.read_bytes() if path.is_file() else b""
    if digest(data) != sha256:
        raise ValueError(f"{path}: {'does not match the SHA-256 in the manifest' if data else 'is missing'}")
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
