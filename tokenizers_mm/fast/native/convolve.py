"""3x3 convolution of float32 images on the CPU, with what stands before and after it in a residual block (convolve.h).

Images are `channels_last` in memory. One call reads its input once, and nothing else is made on the way:
GroupNorm and SiLU before the convolution, bias, residual and the statistics for the next GroupNorm after it.

Shape letters: B batch, C input channels, K output channels, H and W rows and columns.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_mm.fast.native import memory
from tokenizers_mm.fast.native.library import library

Way = Literal["same", "same_small", "doubled", "halved"]
_WAYS: dict[Way, int] = {"same": 0, "same_small": 1, "doubled": 2, "halved": 3}
_PANEL = 32  # output channels of one piece of work in convolve.h


class Norm(NamedTuple):
    """A GroupNorm with SiLU after it, as silu(x * scale + shift)."""

    scale_BC: Tensor
    shift_BC: Tensor

    @classmethod
    def of(cls, norm: nn.GroupNorm, sums_BC2: Tensor, count: int) -> Norm:
        """From the channels' sums and sums of squares over `count` positions, float64."""
        batch, channels, _ = sums_BC2.shape
        sums_BG2 = sums_BC2.view(batch, norm.num_groups, -1, 2).sum(2) / (count * channels // norm.num_groups)
        mean_BG1, square_BG1 = sums_BG2[..., :1], sums_BG2[..., 1:]
        inverse_BG1 = (square_BG1 - mean_BG1.square()).clamp(min=0).add(norm.eps).rsqrt()
        scale_BC, shift_BC = (
            value.expand(-1, -1, channels // norm.num_groups).flatten(1)
            for value in (inverse_BG1, -mean_BG1 * inverse_BG1)
        )
        if norm.affine:
            scale_BC, shift_BC = scale_BC * norm.weight, shift_BC * norm.weight + norm.bias
        return cls(scale_BC.float().contiguous(), shift_BC.float().contiguous())


def convolve(
    x_BCHW: Tensor,
    weight_KC33: Tensor,
    bias_K: Tensor | None,
    way: Way = "same",
    *,
    norm: Norm | None = None,
    residual_BKHW: Tensor | None = None,
    in_place: bool = False,
    sums: bool = False,
    isa: int = -1,
) -> tuple[Tensor, Tensor]:
    """Convolved images [B, K, H, W], and their channel sums [B, K, 2] (zeros unless `sums`; see `channel_sums`).

    way       "same": zero-padded by one, 2.25 products an output instead of 9 (F(4x4, 3x3)); "same_small": 4, and a
              third of the rounding error (F(2x2, 3x3)); "doubled": of the image doubled by nearest neighbours, 2.25;
              "halved": stride 2, zero-padded right and below, 6.25
    norm      applied with SiLU to the input first
    in_place  write over the residual
    isa       0 plain, 1 AVX2, 2 AVX-512; -1 the best that this processor has
    """
    code = library()
    assert code is not None
    (batch, channels, height, width), out = x_BCHW.shape, len(weight_KC33)
    size = {"doubled": (2 * height, 2 * width), "halved": (height // 2, width // 2)}.get(way, (height, width))
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    if residual_BKHW is not None:
        assert residual_BKHW.shape == (batch, out, *size)
        residual_BKHW = residual_BKHW.contiguous(memory_format=torch.channels_last)
    y_BKHW = residual_BKHW if in_place else memory.empty_image(batch, out, *size)
    assert y_BKHW is not None
    threads = torch.get_num_threads()
    parts = max(threads, -(-2 * threads // -(-out // _PANEL)))  # at least two pieces of work a thread
    sums_PBK2 = torch.zeros(parts if sums else 0, batch, out, 2, dtype=torch.float64)
    scale_BC, shift_BC = norm or (None, None)
    shape = (batch, height, width, channels, out, _WAYS[way], parts, threads, isa)
    scratch = memory.empty((code.tmm_scratch(*shape),))
    tensors = (x_BCHW, weight_KC33.contiguous(), bias_K, scale_BC, shift_BC, residual_BKHW, y_BKHW)
    code.tmm_convolve(*map(_address, tensors), _address(sums_PBK2 if sums else None), _address(scratch), *shape)
    return y_BKHW, sums_PBK2.sum(0)


def mix(x_BCHW: Tensor, weight_KC11: Tensor, bias_K: Tensor | None) -> Tensor:
    """1x1 convolution: a matrix product of torch's, into memory that layers hand on."""
    batch, channels, height, width = x_BCHW.shape
    x_NC = x_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    y_BKHW = memory.empty_image(batch, len(weight_KC11), height, width)
    y_NK, weight_CK = y_BKHW.permute(0, 2, 3, 1).view(len(x_NC), -1), weight_KC11.flatten(1).t()
    if bias_K is None:
        torch.mm(x_NC, weight_CK, out=y_NK)
    else:
        torch.addmm(bias_K, x_NC, weight_CK, out=y_NK)
    return y_BKHW


def channel_sums(x_BCHW: Tensor, *, isa: int = -1) -> Tensor:
    """Sum and sum of squares of every channel of every image, [B, C, 2] float64."""
    code = library()
    assert code is not None
    batch, channels, height, width = x_BCHW.shape
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    sums_BC2 = torch.empty(batch, channels, 2, dtype=torch.float64)
    code.tmm_channel_sums(
        _address(x_BCHW), _address(sums_BC2), batch, height * width, channels, torch.get_num_threads(), isa
    )
    return sums_BC2


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
