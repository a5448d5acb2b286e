"""Finite scalar quantization: VQ-VAE made simple (https://arxiv.org/abs/2309.15505).

Each channel is squashed to an interval by a tanh and rounded to one of its L levels; the code is the mixed-radix
number whose digits are the levels, first channel least significant. There is no table to learn and none to collapse.

Rounding a squashed value is counting the boundaries below it, so the boundaries are taken back through the squashing
once, in float64, and vectors are compared with those: codes do not depend on a device's tanh.

    form        value of a digit          squashed z, in digits from the middle     shift of even L
    tanh        (digit - L//2) / (L//2)   tanh(z + shift) half - offset             atanh(offset / half)
    paper       the same                  the same, with a narrower half            tan(offset / half)
    symmetric   2 digit / (L - 1) - 1     tanh(z) (L - 1) / 2                       none

"tanh" is what vector-quantize-pytorch does, "paper" the appendix of the paper, "symmetric" section 3.2 of
https://arxiv.org/abs/2411.19842. Instead of tanh, "sigmoid" is 2 sigmoid(1.6 z) - 1 as in iFSQ
(https://arxiv.org/abs/2601.17124), whose outputs spread evenly where z is normal; "clamp" is a clamp to [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from quantizers.base import Quantized, Quantizer
from quantizers.kernels import scalar_quantize
from quantizers.straight_through import straight_through

Form = Literal["tanh", "paper", "symmetric"]
Activation = Literal["tanh", "sigmoid", "clamp"]

# "tanh" widens the interval a little, so that the outermost levels stay reachable; "paper" narrows it, so that nothing
# is rounded beyond them. Above 1000 levels "a little" is more than half a cell: some levels would be out of reach.
_MARGIN = {"tanh": 1e-3, "paper": -1e-3}
_MOST_LEVELS = 1000
_SIGMOID_SLOPE = 0.8  # 2 sigmoid(1.6 z) - 1 = tanh(0.8 z)


class FSQ(Quantizer):
    """Finite scalar quantizer with one code per position.

    levels         number of levels of each channel, every one in 2..1000; (8, 5, 5, 5) gives 1000 codes
    form           "tanh", "paper" or "symmetric": where the levels lie, see the top of this file
    activation     what squashes: "tanh", "sigmoid" or "clamp" (its gradient is zero outside the interval); the shift of
                   form "paper" exists for tanh only
    noise_dropout  in training, this share of the numbers gets uniform noise in +-0.5 and is clamped to [-1, 1]; codes
                   stay those of the quantised vector

    Values lie in [-1, 1]. With even L, forms "tanh" and "paper" shift by half a cell, so zero is a level for every L.
    """

    kind = "fsq"

    def __init__(
        self,
        levels: Sequence[int] = (8, 5, 5, 5),
        *,
        form: Form = "tanh",
        activation: Activation = "tanh",
        noise_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        if not self.levels or not 2 <= min(self.levels) <= max(self.levels) <= _MOST_LEVELS:
            raise ValueError(
                f"levels={self.levels}: expected at least one channel, and 2..{_MOST_LEVELS} levels in each"
            )
        if math.prod(self.levels) > 2**62:
            raise ValueError(f"levels={self.levels}: {math.prod(self.levels)} codes do not fit an int64")
        if form not in ("tanh", "paper", "symmetric"):
            raise ValueError(f"form={form!r}: expected tanh, paper or symmetric")
        if activation not in ("tanh", "sigmoid", "clamp"):
            raise ValueError(f"activation={activation!r}: expected tanh, sigmoid or clamp")
        if form == "paper" and activation != "tanh":
            raise ValueError(
                f"activation={activation!r}: form 'paper' centres even levels for tanh only; expected tanh, or form "
                "tanh or symmetric"
            )
        if not 0 <= noise_dropout <= 1:
            raise ValueError(f"noise_dropout={noise_dropout}: expected a share in [0, 1]")
        self.form, self.activation, self.noise_dropout = form, activation, noise_dropout
        self.in_dim = self.dim = len(self.levels)
        self.codes = (math.prod(self.levels),)
        self._set_constants()

    level_D: Tensor
    basis_D: Tensor
    half_D: Tensor
    offset_D: Tensor
    shift_D: Tensor
    center_D: Tensor
    unit_D: Tensor
    threshold_DT: Tensor

    def _set_constants(self, device: torch.device | None = None) -> None:
        channels = [_channel(level, self.form, self.activation) for level in self.levels]
        most = max(self.levels) - 1
        rows = [[*channel.thresholds, *[math.inf] * (most - len(channel.thresholds))] for channel in channels]
        constants = {
            "level_D": torch.tensor(self.levels, device=device),
            "basis_D": torch.tensor([math.prod(self.levels[:i]) for i in range(self.dim)], device=device),
            "threshold_DT": torch.tensor(rows, dtype=torch.float32, device=device),
        }
        for name in ("half", "offset", "shift", "center", "unit"):
            values = [getattr(channel, name) for channel in channels]
            constants[f"{name}_D"] = torch.tensor(values, dtype=torch.float32, device=device)
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Follow the module to another device, but not to another type: a boundary in bfloat16 would lose codes."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._set_constants(self.level_D.device)
        return self

    def _bounded(self, z_BND: Tensor) -> Tensor:
        """What is rounded, in units of the result: the gradient is that of this."""
        moved_BND = z_BND + self.shift_D
        match self.activation:
            case "tanh":
                squashed_BND = moved_BND.tanh()
            case "sigmoid":
                squashed_BND = 2 * (2 * _SIGMOID_SLOPE * moved_BND).sigmoid() - 1
            case _:
                squashed_BND = moved_BND.clamp(-1, 1)
        return squashed_BND * (self.half_D / self.unit_D) - self.offset_D / self.unit_D

    def _quantize(self, z_BND: Tensor) -> tuple[Tensor, Tensor]:
        flat_ND = z_BND.reshape(-1, self.dim)
        q_ND, codes_N = scalar_quantize(flat_ND, self.threshold_DT, self.level_D, self.center_D, self.unit_D)
        return q_ND.view(z_BND.shape), codes_N.view(*z_BND.shape[:2], 1)

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        q_BND, codes_BNS = self._quantize(z_BND)
        if self.training and self.noise_dropout:
            noisy_BND = (q_BND + torch.rand_like(q_BND) - 0.5).clamp(-1, 1)
            q_BND = torch.where(torch.rand_like(q_BND) < self.noise_dropout, noisy_BND, q_BND)
        if torch.is_grad_enabled() and z_BND.requires_grad:
            q_BND = straight_through(self._bounded(z_BND), q_BND)
        return Quantized(q_BND, codes_BNS, z_BND.new_zeros(()))

    def _encode(self, z_BND: Tensor) -> Tensor:
        return self._quantize(z_BND)[1]

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return (codes_BNS // self.basis_D % self.level_D - self.center_D) / self.unit_D

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        digit_BND = (q_BND * self.unit_D + self.center_D).round().long().clamp(min=0)
        return (torch.minimum(digit_BND, self.level_D - 1) * self.basis_D).sum(-1, keepdim=True)


class _Channel(NamedTuple):
    """Constants of a channel: rounded is squash(z + shift) half - offset, a value is (digit - center) / unit."""

    half: float
    offset: float
    shift: float
    center: float
    unit: float
    thresholds: list[float]  # of z: a vector reaches one more digit at each


def _channel(level: int, form: Form, activation: Activation) -> _Channel:
    inverse = _INVERSES[activation]
    if form == "symmetric":
        half = center = (level - 1) / 2
        unit, offset, shift = half, 0.0, 0.0
    else:
        half = (level - 1) * (1 + _MARGIN[form]) / 2
        center = unit = float(level // 2)
        offset = 0.5 if level % 2 == 0 else 0.0
        shift = math.tan(offset / half) if form == "paper" else inverse(offset / half)
    edges = (digit - 0.5 - center + offset for digit in range(1, level))
    return _Channel(half, offset, shift, center, unit, [inverse(edge / half) - shift for edge in edges])


def _itself(value: float) -> float:
    return value


def _inverse_of_sigmoid(value: float) -> float:
    return math.atanh(value) / _SIGMOID_SLOPE


_INVERSES: dict[Activation, Callable[[float], float]] = {
    "tanh": math.atanh,
    "sigmoid": _inverse_of_sigmoid,
    "clamp": _itself,
}
