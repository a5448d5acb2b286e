"""Names in DC-AE files (https://arxiv.org/abs/2410.10733): diffusers' are ours, the authors' are translated.

The authors' layout (EfficientViT, DC-Gen) wraps layers in `op_list`, residual branches in `main` and convolutions in a
module of their own, and fuses q, k and v.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from tokenizers_mm.weights import CheckpointError

SIDES = {"encoder": "encoder.down_blocks", "decoder": "decoder.up_blocks"}
_OURS = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.\d+\.\d+\.(conv1|attn\.to_q)\.weight")
_ORIGINAL = re.compile(r"(encoder|decoder)\.stages\.(\d+)\.op_list\.(\d+)\.(.+)\.(\w+)")

# Modules of a layer in the authors' layout, without the `main` of their residual wrappers -> ours.
_MODULES = {
    "conv1.conv": "conv1",
    "conv2.conv": "conv2",
    "conv2.norm": "norm",
    "conv": "conv",
    "conv.conv": "conv",
    "context_module.proj.conv": "attn.to_out",
    "context_module.proj.norm": "attn.norm_out",
    "local_module.inverted_conv.conv": "conv_out.conv_inverted",
    "local_module.depth_conv.conv": "conv_out.conv_depth",
    "local_module.point_conv.conv": "conv_out.conv_point",
    "local_module.point_conv.norm": "conv_out.norm",
}


def is_diffusers(keys: Iterable[str]) -> bool:
    """Whether these are the names of diffusers' AutoencoderDC, which are ours."""
    return any(_OURS.fullmatch(key) for key in keys)


def is_original(keys: Iterable[str]) -> bool:
    """Whether these are the names of the authors' own files."""
    return any(_ORIGINAL.fullmatch(key) for key in keys)


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the authors' layout under our names, as views; the fused q, k, v convolution becomes three matrices.

    Raises `CheckpointError` for a name of the encoder or decoder that is not known; other names stay as they are.
    """
    renamed: dict[str, Tensor] = {}
    resampling = {side for side in SIDES if not any(key.startswith(f"{side}.stages.0.") for key in state)}
    for key, tensor in state.items():
        if not key.startswith(("encoder.", "decoder.")):
            renamed[key] = tensor
        elif match := _ORIGINAL.fullmatch(key):
            side, level, layer, module, leaf = match.groups()
            prefix = f"{SIDES[side]}.{level}.{layer}"
            renamed |= {f"{prefix}.{name}.{leaf}": part for name, part in _layer(key, module, tensor)}
        else:
            renamed[_end(key, resampling)] = tensor
    return renamed


def _layer(key: str, module: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Our names of a module of one layer, each with its part of the tensor."""
    module = re.sub(r"\bmain\.", "", module)
    if module == "context_module.qkv.conv":
        yield from zip(("attn.to_q", "attn.to_k", "attn.to_v"), tensor.flatten(1).chunk(3), strict=True)
    elif scale := re.fullmatch(r"context_module\.aggreg\.(\d+)\.([01])", module):
        yield f"attn.to_qkv_multiscale.{scale[1]}.{('proj_in', 'proj_out')[int(scale[2])]}", tensor
    elif module in _MODULES:
        yield _MODULES[module], tensor.flatten(1) if module.endswith("proj.conv") else tensor
    else:
        raise CheckpointError(f"{key}: unknown in DC-AE; expected a file of its authors' image autoencoders")


def _end(key: str, resampling: set[str]) -> str:
    """Our name of a weight outside the levels.

    resampling  sides whose level 0 has no layers, so that the convolution next to the image changes resolution
    """
    side, _, rest = key.partition(".")
    rest, _, leaf = rest.replace(".main.", ".").rpartition(".")
    outer = "conv_in" if side == "encoder" else "conv_out"
    names = {
        "encoder": {"project_in.conv": outer, "project_in.conv.conv": outer, "project_out.op_list.0.conv": "conv_out"},
        "decoder": {
            "project_in.conv": "conv_in",
            "project_out.op_list.0": "norm_out",
            "project_out.op_list.2.conv": outer,
            "project_out.op_list.2.conv.conv": outer,
        },
    }[side]
    if rest not in names:
        raise CheckpointError(f"{key}: unknown in DC-AE; expected a file of its authors' image autoencoders")
    name = names[rest]
    return f"{side}.{name}.{'conv.' if name == outer and side in resampling else ''}{leaf}"
