"""Precision of training: `auto` is bfloat16 where the processor or the GPU computes in it, float32 elsewhere.

Where it does not, bfloat16 is emulated: correct, but many times slower than float32.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

__all__ = ["AskedPrecision", "Precision", "computes_bfloat16", "describe_precision", "resolve_precision"]

Precision = Literal["no", "bf16", "fp16"]
AskedPrecision = Literal["auto", "no", "bf16", "fp16"]

_NAMES: dict[Precision, str] = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def resolve_precision(asked: AskedPrecision, device: torch.device | str) -> Precision:
    """What is computed in on a device; `ValueError` for a precision that does not exist."""
    if asked == "auto":
        return "bf16" if computes_bfloat16(device) else "no"
    if asked not in _NAMES:
        raise ValueError(f"precision={asked!r}: expected one of {', '.join(get_args(AskedPrecision))}")
    return asked


def computes_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 numbers itself: recent NVIDIA and AMD GPUs, x86 with AVX512-BF16 or AMX."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":  # private names: absent, a processor is taken for one that has neither
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, test, bool)()) for test in tests)
    return False


def describe_precision(asked: AskedPrecision, device: torch.device | str) -> str:
    """One line for the log: what is computed in, and why where it was left open."""
    name = _NAMES[resolve_precision(asked, device)]
    if asked != "auto":
        return f"precision: {name}"
    what = {"cuda": "GPU", "cpu": "processor"}.get(torch.device(device).type, "device")
    return f"precision: {name} (auto: this {what} has {'' if computes_bfloat16(device) else 'no '}bfloat16 arithmetic)"
