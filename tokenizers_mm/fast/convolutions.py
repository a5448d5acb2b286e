"""Winograd convolutions (or bfloat16) for inference on CPUs: a trained tokenizer, faster, with the same weights.

"fast"   3x3 convolutions by Winograd's transforms F(4x4, 3x3) (https://arxiv.org/abs/1509.09308) at points chosen for
         accuracy: a quarter of the products, and no more rounding error than the plain sum
"exact"  F(2x2, 3x3): 2.25 times fewer products, and a third of that rounding error
"bf16"   the nets in bfloat16, a copy; pays where the processor multiplies bfloat16, and is slower where it does not

The first two share every weight with the tokenizer that was given and take any image size; nothing is traced or
compiled at run time. GroupNorm, SiLU, bias, residual and the next statistics are part of the convolutions
(`fast.native`), and doubling an image before a convolution costs a quarter of the products. The memory of the largest
pass is kept for the next one: `native.release` gives it back, and so does the end of the tokenizer.

Shape letters: B batch, C channels, H and W rows and columns.
"""

from __future__ import annotations

import copy
import weakref
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.fast import native
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.nets import conv

Mode = Literal["exact", "fast", "bf16"]
_Net = TypeVar("_Net", bound=nn.Module)
_FEW_TILES = 16  # of 4 x 4 positions: for fewer, transforming the weights costs more than it saves
_SAME: dict[str, Literal["same", "same_small"]] = {"fast": "same", "exact": "same_small"}


def optimize(tokenizer: Autoencoder, mode: Mode = "fast") -> Autoencoder:
    """A tokenizer for inference on the CPU that gives what this one gives, faster; this one stays as it is.

    It has the same spec, configuration and state dict ("bf16": rounded weights). It refuses to run while gradients are
    recorded, and other devices and dtypes take the plain path. Without a C++ compiler "fast" and "exact" warn once and
    are the plain path.

    Raises `ValueError` for an unknown mode, a tokenizer in training mode, nets that are not float32 on the CPU, and, if
    not "bf16", nets without 3x3 convolutions.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(get_args(Mode))}")
    if tokenizer.training:
        raise ValueError("tokenizer is in training mode: optimized nets cannot be trained, call eval() first")
    nets = ("encoder", "quant_conv", "post_quant_conv", "decoder")
    for name, weight in tokenizer.named_parameters():
        if name.split(".")[0] in nets and (weight.dtype != torch.float32 or weight.device.type != "cpu"):
            found = f"{weight.dtype} on {weight.device}"
            raise ValueError(f"{name} is {found}: expected float32 on the CPU, call float() and cpu() first")
    layers = [layer for name in nets for layer in getattr(tokenizer, name).modules()]
    if mode != "bf16" and not any(map(_is_plain, layers)):
        kinds = f"{tokenizer.config.net.kind} with decoder {type(tokenizer.decoder).__name__}"
        raise ValueError(f"mode={mode!r}: net {kinds} has no 3x3 convolution to do faster; use bf16, or it as it is")
    view = _shallow(tokenizer)
    for name in nets:
        net = getattr(tokenizer, name)
        if mode == "bf16":
            half = copy.deepcopy(net).to(torch.bfloat16).requires_grad_(False)
            setattr(view, name, half.to(memory_format=torch.channels_last))
        elif native.available():
            setattr(view, name, _swapped(net, mode))
    weakref.finalize(view, native.release).atexit = False
    return view


def _shallow(module: _Net) -> _Net:
    """Another module with the same children and parameters, whose children can be exchanged."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other


def _swapped(module: nn.Module, mode: Mode) -> nn.Module:
    """A tree of the same parameters in which every part that has a faster equivalent is one."""
    other = _shallow(module)
    for name, child in module._modules.items():
        if child is not None:
            other._modules[name] = _swapped(child, mode)
    if _is_plain(other):
        other.__dict__["way"] = _SAME[mode]
        other.__class__ = Convolution
    elif type(other) is conv.ResBlock and other.activation is F.silu and isinstance(other.norm1, nn.GroupNorm):
        other.__class__ = ResBlock
    elif type(other) is conv.Attention:
        other.__class__ = Attention
    elif type(other) is conv.Upsample and other.nearest:
        other.__class__ = Upsample
    elif type(other) is conv.Downsample and other.corner:
        other.__class__ = Downsample
    elif type(other) in (conv.Encoder, conv.Decoder) and other.activation is F.silu:
        _join_output(other)
    return other


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a 3x3 convolution of all channels, with stride 1 and zero padding."""
    if type(layer) is not nn.Conv2d:
        return False
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def _join_output(net: nn.Module) -> None:
    """Let the last convolution do the normalisation and activation before it."""
    if isinstance(net.norm_out, nn.GroupNorm) and isinstance(net.conv_out, Convolution):
        net.conv_out.__dict__["norm"] = net.norm_out  # not registered: the state dict has it once
        net.norm_out, net.activation = _shallow(net.norm_out), nn.Identity()
        net.norm_out.__class__ = Postponed


def _native(module: nn.Module, x_BCHW: Tensor) -> bool:
    """Whether the kernels take this input; `ValueError` where a gradient would be lost."""
    if module.training or torch.is_grad_enabled():
        state = "in training mode" if module.training else "recording gradients"
        raise ValueError(
            f"{state}: optimized nets only infer; call eval() and use torch.no_grad(), or train the original"
        )
    return x_BCHW.device.type == "cpu" and x_BCHW.dtype == torch.float32


def _with_sums(y_BCHW: Tensor, sums_BC2: Tensor) -> Tensor:
    """The tensor, carrying its channel sums to the next normalisation; any operation in between drops them."""
    y_BCHW.channel_sums = _version(y_BCHW), sums_BC2  # type: ignore[attr-defined]
    return y_BCHW


def _norm(norm: nn.GroupNorm, x_BCHW: Tensor) -> native.Norm:
    """The normalisation of x, from the sums that came with it if it was not changed since, or from counted ones."""
    version, sums_BC2 = getattr(x_BCHW, "channel_sums", (None, None))
    if sums_BC2 is None or version != _version(x_BCHW):
        sums_BC2 = native.channel_sums(x_BCHW)
    return native.Norm.of(norm, sums_BC2, x_BCHW.shape[2] * x_BCHW.shape[3])


def _version(x_BCHW: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count."""
    return 0 if x_BCHW.is_inference() else x_BCHW._version


def _convolved(
    x_BCHW: Tensor,
    layer: nn.Conv2d,
    norm: nn.Module | None = None,
    residual_BCHW: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor:
    """Normalise, activate, convolve as the layer says, add; in place of the residual if that is not needed any more."""
    assert isinstance(layer, Convolution)
    tiles = len(x_BCHW) * -(-x_BCHW.shape[2] // 4) * -(-x_BCHW.shape[3] // 4)
    way = "same_small" if tiles < _FEW_TILES else layer.way
    affine = _norm(norm, x_BCHW) if isinstance(norm, nn.GroupNorm) else None
    return _with_sums(
        *native.convolve(
            x_BCHW, layer.weight, layer.bias, way,
            norm=affine, residual_BKHW=residual_BCHW, in_place=in_place, sums=True,
        )
    )  # fmt: skip


class Postponed(nn.GroupNorm):
    """A normalisation that the next convolution does."""

    def forward(self, input: Tensor) -> Tensor:
        """The input as it is."""
        return input


class Convolution(nn.Conv2d):
    """3x3 convolution by transforms, with GroupNorm and SiLU before it where `norm` is set."""

    way: Literal["same", "same_small"]
    norm: nn.GroupNorm | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H, W]."""
        if not _native(self, input):
            return super().forward(input if self.norm is None else F.silu(self.norm(input)))
        return _convolved(input, self, self.norm)


class ResBlock(conv.ResBlock):
    """Two calls of the kernel instead of seven operations."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        if not _native(self, x_BCHW) or not self.input_skip:
            return super().forward(x_BCHW)
        h_BCHW = _convolved(x_BCHW, self.conv1, self.norm1)
        shortcut: nn.Module | None = getattr(self, "nin_shortcut", None)
        if shortcut is None:
            return _convolved(h_BCHW, self.conv2, self.norm2, x_BCHW)
        if type(shortcut) is not nn.Conv2d:
            return _convolved(h_BCHW, self.conv2, self.norm2, shortcut(x_BCHW))
        skip_BCHW = native.mix(x_BCHW, shortcut.weight, shortcut.bias)
        return _convolved(h_BCHW, self.conv2, self.norm2, skip_BCHW, in_place=True)


class Attention(conv.Attention):
    """The same operations; what is not needed any more is let go at once."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        if not _native(self, x_BCHW):
            return super().forward(x_BCHW)
        h_BCHW = self.norm(x_BCHW)
        q_BNC, k_BNC, v_BNC = (layer(h_BCHW).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        del h_BCHW
        h_BNC = F.scaled_dot_product_attention(q_BNC[:, None], k_BNC[:, None], v_BNC[:, None])[:, 0]
        del q_BNC, k_BNC, v_BNC
        out: Tensor = self.proj_out(h_BNC.transpose(1, 2).reshape_as(x_BCHW))
        return out.add_(x_BCHW)


class Upsample(conv.Upsample):
    """Doubling and convolution in one: the doubled image is never made."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2 H, 2 W]."""
        if not _native(self, x_BCHW):
            return super().forward(x_BCHW)
        return _with_sums(*native.convolve(x_BCHW, self.conv.weight, self.conv.bias, "doubled", sums=True))


class Downsample(conv.Downsample):
    """Padding and stride-2 convolution in one."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / 2, W / 2]."""
        if not _native(self, x_BCHW):
            return super().forward(x_BCHW)
        return _with_sums(*native.convolve(x_BCHW, self.conv.weight, self.conv.bias, "halved", sums=True))
