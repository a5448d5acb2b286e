"""What the shapes of a convolutional tokenizer's tensors, under our names, tell of its options: nearly all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers_mm.weights import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Structure of a file, as far as shapes show it.

    quantizer   what its bottleneck is: a Gaussian (twice as many channels leave the encoder as enter the decoder), a
                codebook, one codebook for all scales, a codebook beside a map to logits, or nothing that has weights
                (bits)
    net         `ConvConfig` options
    latent      channels of the bottleneck's vectors; size  rows of the codebook, 0 without one
    patch       side of the latent patches that batch-norm statistics stand for
    """

    quantizer: Literal["gaussian", "codebook", "scales", "logits", "bits"]
    net: dict[str, Any]
    z_channels: int
    latent: int
    size: int
    quant_conv: int
    post_quant_conv: int
    convolutions: int
    patch: int


def facts_of(shapes: Shapes, where: str) -> Facts:
    """Read the structure off shapes. `CheckpointError` naming the layer that is missing or contradicts."""
    net = _net(shapes, where)
    z_out, z_in = (
        _shape(shapes, "encoder.conv_out.weight", where)[0],
        _shape(shapes, "decoder.conv_in.weight", where)[1],
    )
    before = shapes.get("quant_conv.weight", (z_out, z_out, 0, 0))
    after = shapes.get("post_quant_conv.weight", (z_in, z_in, 0, 0))
    book = shapes.get("bottleneck.codebook_KD") or shapes.get("bottleneck.quantizer.codebook_KD")
    quantizer: Any = "scales" if "bottleneck.quantizer.codebook_KD" in shapes else "codebook"
    if "bottleneck.to_logits.weight" in shapes:
        quantizer = "logits"
    if book is None:
        quantizer = "gaussian" if before[0] == 2 * after[1] else "bits"
        book = (0, after[1])
    channels = 2 * book[1] if quantizer == "gaussian" else book[1]
    if before[0] != channels or after[1] != book[1]:
        raise CheckpointError(
            f"{where}: {before[0]} channels go into the bottleneck, {book[1]} channels wide, and {after[1]} into the "
            f"decoder; expected {channels} and {book[1]}: these tensors are not of one tokenizer"
        )
    if "bn.running_mean" in shapes and shapes["bn.running_mean"][0] % book[1]:
        raise CheckpointError(f"{where}: bn.running_mean {shapes['bn.running_mean']}: no multiple of {book[1]} latents")
    norm = shapes.get("bn.running_mean", (book[1],))[0] // book[1]
    return Facts(
        quantizer=quantizer,
        net=net,
        z_channels=z_in,
        latent=book[1],
        size=book[0],
        quant_conv=before[2],
        post_quant_conv=after[2],
        convolutions=_count(shapes, r"bottleneck\.convolutions\.(\d+)\.weight"),
        patch=round(norm**0.5),
    )


def _net(shapes: Shapes, where: str) -> dict[str, Any]:
    channels, image_channels = _shape(shapes, "encoder.conv_in.weight", where)[:2]
    down, up = _side(shapes, "encoder.down", where), _side(shapes, "decoder.up", where)
    if len(down.widths) != len(up.widths):
        raise CheckpointError(
            f"{where}: {len(down.widths)} levels in the encoder, {len(up.widths)} in the decoder; expected as many"
        )
    multipliers = [width / channels for width in down.widths]
    wide = [s for key, s in shapes.items() if key.endswith(".nin_shortcut.weight")]
    options: dict[str, Any] = {
        "channels": channels,
        "image_channels": image_channels,
        "multipliers": multipliers,
        "decoder_multipliers": [width / channels for width in up.widths],
        "blocks": down.blocks,
        "decoder_blocks": up.blocks,
        "attention_levels": down.attention,
        "decoder_attention_levels": up.attention,
        "middle_blocks": _count(shapes, r"encoder\.mid\.block_(\d+)\.norm1\.weight"),
        "middle_attention": "encoder.mid.attn_1.norm.weight" in shapes,
        "bias": "encoder.conv_in.bias" in shapes,
        "encoder_out": _shape(shapes, "encoder.conv_out.weight", where)[2],
        "modulation": "decoder.adaptive.0.gamma.weight" in shapes,
        "block_input_skip": not wide or any(s[0] != s[1] for s in wide),
    }
    if len(down.widths) > 1:
        options["downsample"] = "corner" if "encoder.down.0.downsample.conv.weight" in shapes else "average"
        upsample = _shape(shapes, "decoder.up.1.upsample.conv.weight", where)
        options["upsample"] = "depth" if upsample[0] == 4 * upsample[1] else "nearest"
    for name in ("decoder_multipliers", "decoder_attention_levels"):  # only what differs is worth saying
        if options[name] == options[name.removeprefix("decoder_")]:
            options[name] = None
    if options["decoder_blocks"] == [blocks + 1 for blocks in down.blocks]:
        options["decoder_blocks"] = None
    for name in ("blocks", "decoder_blocks"):
        if options[name] and len(set(options[name])) == 1:
            options[name] = options[name][0]
    return options


@dataclass(frozen=True, kw_only=True)
class _Side:
    widths: list[int]
    blocks: list[int]
    attention: list[int]


def _side(shapes: Shapes, name: str, where: str) -> _Side:
    """Levels of one half, from full resolution."""
    pattern = re.escape(name)
    levels = range(_count(shapes, rf"{pattern}\.(\d+)\.block\.0\.norm1\.weight"))
    if not levels:
        raise CheckpointError(f"{where}: no {name}.0.block.0.norm1.weight (in our names): not a whole autoencoder")
    blocks = [_count(shapes, rf"{pattern}\.{i}\.block\.(\d+)\.norm1\.weight") for i in levels]
    widths = [_shape(shapes, f"{name}.{i}.block.0.conv2.weight", where)[0] for i in levels]
    return _Side(
        widths=widths, blocks=blocks, attention=[i for i in levels if f"{name}.{i}.attn.0.norm.weight" in shapes]
    )


def _count(shapes: Shapes, pattern: str) -> int:
    return len({match[1] for key in shapes if (match := re.fullmatch(pattern, key))})


def _shape(shapes: Shapes, key: str, where: str) -> tuple[int, ...]:
    if key not in shapes:
        raise CheckpointError(f"{where}: no {key} (in our names): not a whole autoencoder")
    return shapes[key]
