"""Fingerprints: which tokenizer this is, as a text that token stores and generators remember."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from tokenizers_mm.api import Tokenizer
from tokenizers_mm.saving.object_state import object_digest
from tokenizers_mm.saving.saved import Saved, check_saved, is_saved
from tokenizers_mm.weights import CheckpointError

__all__ = ["fingerprint", "fingerprint_of"]


def fingerprint(tokenizer: Saved) -> str:
    """SHA-256 over configuration and weights of a tokenizer that can be saved: equal exactly when the tokenizers are.

    Raises `CheckpointError` for one that cannot.
    """
    digest = hashlib.sha256(json.dumps(check_saved(tokenizer).identity(), sort_keys=True).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of(tokenizer: Tokenizer) -> str:
    """Text that is the same for the same tokenizer in every process: what a token store and a generator remember.

    Of those that can be saved `fingerprint`; of others their own `fingerprint` (a text, or a method that returns one)
    where they have it, else a SHA-256 over the name of the class, the spec and everything the object holds (see
    `object_state`), whatever the device. Code is not read: a changed `encode` with the same attributes goes unnoticed,
    and what a class remembers of its work counts, so give such classes a `fingerprint`. Others are asked after
    `on_device`, before they encode or decode.

    Raises `ValueError` for a fingerprint that is no line of text, and for state that cannot be seen from Python.
    """
    ours = _saved_fingerprint(tokenizer)
    if ours is not None:
        return ours
    own: Any = getattr(tokenizer, "fingerprint", None)
    if own is None:
        return object_digest([json.dumps(tokenizer.spec.identity()), tokenizer], _saved_fingerprint)
    text = own() if callable(own) else own
    if not isinstance(text, str) or text != text.strip() or len(text.splitlines()) != 1:
        raise ValueError(f"{type(tokenizer).__name__}.fingerprint is {text!r}: expected one line of text")
    return text


def _saved_fingerprint(value: object) -> str | None:
    """That of a tokenizer that can be saved; None for anything else."""
    try:
        return fingerprint(value) if is_saved(value) else None
    except CheckpointError:  # fused with a half of somebody else's class
        return None
