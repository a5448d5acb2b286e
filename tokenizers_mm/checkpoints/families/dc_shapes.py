"""What the shapes of a DC-AE tell of its net, for files without a config.json that describes it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tokenizers_mm.checkpoints.families.reader import Contents, Shapes
from tokenizers_mm.weights import CheckpointError


class _Level(NamedTuple):
    """A level as its first block shows it; the others are checked when the net is put together."""

    width: int
    layers: int
    block: str
    scales: tuple[int, ...]
    norm: str
    activation: str


def net_of(given: Contents) -> tuple[dict[str, Any], int]:
    """Net options and latent channels as far as shapes tell; the rest is that of the published models.

    Shapes say nothing of: the width of a level 0 without layers (half of level 1); a level's activation (ReLU with
    batch norm, SiLU otherwise); the head width where no level has extra scales (32); the shortcuts around the latent
    (there, except in the models whose encoder has no attention, DC-AE 1.1 and 1.5); the last activation (ReLU, but
    SiLU in the models whose decoder has no attention, these and DC-AE-Lite).
    """
    shapes = given.shapes
    z = given.shape("encoder.conv_out.weight")[0]
    image = (shapes.get("encoder.conv_in.conv.weight") or given.shape("encoder.conv_in.weight"))[1]
    encoder, decoder = _levels(given, "encoder.down_blocks"), _levels(given, "decoder.up_blocks")
    mixes = [shape for key, shape in shapes.items() if key.endswith(".to_qkv_multiscale.0.proj_out.weight")]
    shortcuts = any(level.block == "attention" for level in encoder)
    down = _resampler(shapes, "encoder.down_blocks.0") or shapes.get("encoder.conv_in.conv.weight")
    inner = _resampler(shapes, "decoder.up_blocks.0")
    up = inner or shapes.get("decoder.conv_out.conv.weight")
    net: dict[str, Any] = {"kind": "dc"}
    for ours, levels in (("", encoder), ("decoder_", decoder)):
        net[f"{ours}widths"] = [level.width for level in levels]
        net[f"{ours}layers"] = [level.layers for level in levels]
        net[f"{ours}blocks"] = [level.block for level in levels]
        net[f"{ours}scales"] = [list(level.scales) for level in levels]
    return net | {
        "decoder_norms": [level.norm for level in decoder],
        "decoder_activations": [level.activation for level in decoder],
        "last_activation": "relu" if any(level.block == "attention" for level in decoder) else "silu",
        # Unshuffling leaves a quarter of the coarser width to the convolution, shuffling asks four times the finer one.
        "downsample": "conv" if down and len(encoder) > 1 and down[0] == encoder[1].width else "unshuffle",
        "upsample": "nearest" if up and up[0] == (decoder[0].width if inner else image) else "shuffle",
        "encoder_shortcut": shortcuts and encoder[-1].width % z == 0,
        "decoder_shortcut": shortcuts and decoder[-1].width % z == 0,
        "head_width": mixes[0][1] if mixes else 32,
        "image_channels": image,
    }, z


def _levels(given: Contents, prefix: str) -> list[_Level]:
    """Levels of one side. A coarsest one without blocks, which no published model has, is not told from a lost one."""
    indices = given.numbers(rf"{re.escape(prefix)}\.(\d+)\.")
    if not indices:
        raise CheckpointError(f"{given.where}: no {prefix}.* (in our names): not a whole DC-AE; copy it again")
    levels = [_level(given.shapes, f"{prefix}.{index}") for index in range(indices[-1] + 1)]
    if levels[0].layers == 0 and len(levels) > 1:
        levels[0] = levels[1]._replace(width=levels[1].width // 2, layers=0, block="residual", scales=())
    if _resampler(given.shapes, f"{prefix}.{indices[-1]}"):
        raise CheckpointError(f"{given.where}: no {prefix}.{indices[-1] + 1}.*: give its config.json, or copy it again")
    return levels


def _level(shapes: Shapes, prefix: str) -> _Level:
    inside = {key[len(prefix) + 1 :]: shape for key, shape in shapes.items() if key.startswith(f"{prefix}.")}
    firsts = [name for name in inside if re.fullmatch(r"\d+\.(conv1|attn\.to_out)\.weight", name)]
    kernels = sorted((name, shape[-1]) for name, shape in inside.items() if name.endswith(".proj_in.weight"))
    batch = any(name.endswith("running_mean") for name in inside)
    return _Level(
        width=inside[firsts[0]][0] if firsts else 0,
        layers=len(firsts),
        block="attention" if any(".attn." in name for name in firsts) else "residual",
        scales=tuple(kernel for name, kernel in kernels if name.partition(".")[0] == kernels[0][0].partition(".")[0]),
        norm="batch" if batch else "rms",
        activation="relu" if batch else "silu",
    )


def _resampler(shapes: Shapes, prefix: str) -> tuple[int, ...] | None:
    """Shape of the convolution that changes resolution inside a level."""
    return next((shape for key, shape in shapes.items() if re.fullmatch(rf"{prefix}\.\d+\.conv\.weight", key)), None)
