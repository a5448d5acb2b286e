"""Statistics of latents as diffusers' config.json has them: scaling_factor, shift_factor, latents_mean, latents_std.

A model generates (z - shift_factor) * scaling_factor, or (z - latents_mean) / latents_std * scaling_factor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers_mm.checkpoints.families.reader import About, Statistics
from tokenizers_mm.weights import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def statistics(about: About, channels: int, where: str, *, default: float | None = 1.0) -> Statistics:
    """(mean, standard deviation) of the latents: numbers, or one per channel.

    default  factor of a config.json that states none; None then has no statistics

    Raises `CheckpointError` for numbers that cannot be meant.
    """
    scale, shift, mean, std = (about.get(name) for name in NAMES)
    scale = default if "scaling_factor" not in about else 1.0 if scale is None else scale
    if scale is None:
        return None
    _check(about, _is_real(scale) and scale > 0, "scaling_factor", "a finite number above 0", where)
    if mean is None and std is None:
        _check(about, shift is None or _is_real(shift), "shift_factor", "a finite number", where)
        return float(shift or 0), 1 / scale
    _check(about, not shift, "shift_factor", "none beside latents_mean and latents_std", where)
    lists = []
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        fits = isinstance(values, Sequence) and len(values) == channels and all(map(_is_real, values))
        _check(about, fits, name, f"{channels} finite numbers", where)
        lists.append([float(value) for value in values or ()])
    _check(about, min(lists[1]) > 0, "latents_std", "numbers above 0", where)
    return lists[0], [value / scale for value in lists[1]]


def entries(mean_D: Tensor, std_D: Tensor) -> dict[str, Any]:
    """One factor and shift where all channels have the same, else lists; as short as float32 allows."""
    mean, std = ([float(value) for value in part.detach().cpu()] for part in (mean_D, std_D))
    if len({*mean}) == len({*std}) == 1:
        shift, scale = _shortest(mean[0], lambda value: value), _shortest(1 / std[0], lambda value: 1 / value)
        return dict(zip(NAMES, (scale, shift or None, None, None), strict=True))
    lists = ([_shortest(one, lambda value: value) for one in part] for part in (mean, std))
    return dict(zip(NAMES, (1.0, None, *lists), strict=True))


def _shortest(value: float, back: Callable[[float], float]) -> float:
    """The shortest decimal that gives the same float32 statistic: 0.18215, not 0.18214999488."""
    rounded = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next((short for short in rounded if short and _float32(back(short)) == _float32(back(value))), value)


def _float32(value: float) -> bytes:
    return struct.pack("f", value)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(about: About, fits: bool, name: str, expected: str, where: str) -> None:
    if not fits:
        raise CheckpointError(f"{where}: {name} = {about.get(name)!r}: expected {expected}; correct config.json")
