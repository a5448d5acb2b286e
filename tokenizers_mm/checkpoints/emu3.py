"""Checkpoints of Emu3's vision tokenizer (https://arxiv.org/abs/2409.18869), read for still images, and of MoVQ.

Emu3's come in the original naming and in that of transformers, MoVQ's (https://arxiv.org/abs/2209.09002) in its own and
in that of diffusers. All hold norms that read the codes, by which they are told. Of each convolution over time an image
meets the last tap, except where the encoder halves time; so Emu3's layouts cannot be written back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tokenizers_mm.checkpoints import diffusers_names
from tokenizers_mm.weights import CheckpointError

_RENAMES = (
    # in transformers, layers of a kind stand together, and norms beside the attention they belong to
    (r"\.(?:down|up)_block\.(down|up)\.", r".\1."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
    # in diffusers, the norm of attention has a name of its own where it reads the codes
    (r"\.spatial_norm\.", ".norm."),
    # a convolution over time stands in a wrapper, in two where it changes the number of frames
    (r"(^quant_conv|^post_quant_conv|\.conv[12])\.conv\.", r"\1."),
    (r"(\.time_conv\.\d+)\.conv\.conv\.", r"\1."),
    (r"^post_quant_conv\.", "decoder.post_quant_conv."),
    (r"^quantize\.embedding\.weight$", diffusers_names.CODEBOOK),
)
_ATTENTION = re.compile(r".*\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight")


def is_emu3(keys: Collection[str]) -> bool:
    """Whether these are the keys of Emu3's tokenizer."""
    return {"encoder.time_res_stack.0.norm1.weight", "decoder.norm_out.conv_y.weight"} <= set(keys)


def is_movq(keys: Collection[str]) -> bool:
    """Whether these are the keys of a MoVQ, which has no time."""
    reads_codes = {"decoder.norm_out.conv_y.weight", "decoder.conv_norm_out.conv_y.weight"} & set(keys)
    return bool(reads_codes) and not is_emu3(keys)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names, as views but for those of time; keys of no known layer pass under their own.

    Works on shapes as it does on weights: give it tensors of the meta device.
    """
    plain = diffusers_names.to_ours(state) if diffusers_names.is_diffusers(state) else state
    ours = {}
    for key, value in plain.items():
        for pattern, new in _RENAMES:
            key = re.sub(pattern, new, key)
        if _ATTENTION.fullmatch(key):
            value = value.reshape(*value.shape[:2], 1, 1)
        if value.ndim == 5 and not key.startswith("encoder.time_conv."):
            value = value[:, :, -1].contiguous()  # a few thousand numbers in all
        ours[key] = value
    return ours


def options(state: Mapping[str, Tensor], where: str = "checkpoint") -> dict[str, Any]:
    """`AutoencoderConfig` options as plain data, without image_size, from the shapes of the file's tensors.

    where  path that starts every error message

    Raises `CheckpointError` naming a layer that is missing, and widths that are not multiples of the first one.
    """
    shapes = {key: tuple(value.shape) for key, value in to_ours(state).items()}
    for key in ("encoder.conv_in.weight", "decoder.conv_in.weight", diffusers_names.CODEBOOK):
        if len(shapes.get(key, ())) < 2:
            raise CheckpointError(f"{where}: no {key} (in our names): not the whole of an Emu3 tokenizer or MoVQ")
    (width, image_channels), (size, dim) = shapes["encoder.conv_in.weight"][:2], shapes[diffusers_names.CODEBOOK]
    z_in = shapes["decoder.conv_in.weight"][1]
    if z_in != dim:
        raise CheckpointError(
            f"{where}: {z_in} channels go into the decoder, and code vectors have {dim}: expected as many; "
            "no net here takes other widths, choose another model"
        )

    def found(pattern: str) -> list[int]:
        return sorted({int(match[1]) for key in shapes if (match := re.match(pattern, key))})

    levels = found(r"encoder\.down\.(\d+)\.")
    widths = [shapes.get(f"encoder.down.{i}.block.0.conv2.weight", (0,))[0] for i in levels]
    if not levels or any(w < width or w % width for w in widths):
        raise CheckpointError(
            f"{where}: encoder levels are {widths} channels wide: expected multiples of the first layer's {width}"
        )
    net = {
        "kind": "emu3",
        "channels": width,
        "multipliers": [w // width for w in widths],
        "blocks": len(found(r"encoder\.down\.0\.block\.(\d+)\.")),
        "attention_levels": found(r"encoder\.down\.(\d+)\.attn\."),
        "frames": 2 ** len(found(r"encoder\.time_conv\.(\d+)\.")),
        "temporal_blocks": len(found(r"encoder\.time_res_stack\.(\d+)\.")),
        "image_channels": image_channels,
    }
    # The codebook was trained by gradients, and further training must not replace its rows.
    bottleneck = {"kind": "vq", "size": size, "dim": dim, "codebook": "gradient", "revive": 0.0}
    return {"net": net, "bottleneck": bottleneck, "z_channels": dim, "quant_conv": 1, "post_quant_conv": 0}
