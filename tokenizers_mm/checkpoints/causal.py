"""Checkpoints of the Wan and Qwen-Image autoencoders (Wan, https://arxiv.org/abs/2503.20314), read for still images.

Two naming schemes hold the same tensors: diffusers' (AutoencoderKLWan, AutoencoderKLQwenImage and, with the time axis
already gone, AutoencoderKLQwenImage21) and the original one (Wan2.1_VAE.pth, Wan2.2_VAE.pth and what is repackaged from
them). Of each 3-D convolution an image meets the last temporal tap, and of the convolutions over time none. So neither
layout can be written back: the taps that only video meets are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from tokenizers_mm.nets import CausalConfig, CausalDecoder, CausalEncoder
from tokenizers_mm.weights import CheckpointError

Shapes = Mapping[str, Sequence[int]]

# (mean, standard deviation) of the latent channels, by their number: wan/modules/vae.py of github.com/Wan-Video/Wan2.1,
# which Qwen-Image kept, and wan/modules/vae2_2.py of github.com/Wan-Video/Wan2.2.
# fmt: off
PUBLISHED_STATISTICS: dict[int, tuple[list[float], list[float]]] = {
    16: (
        [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
         -0.9497, 0.2503, -0.2921],
        [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
         2.8251, 1.9160],
    ),
    48: (
        [-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
         -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055,
         -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839,
         -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667],
        [0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
         0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
         0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
         0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744],
    ),
}
# fmt: on

_RENAMES = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.(middle\.0|mid_block\.resnets\.0)\.", ".mid.block_1."),
    (r"\.(middle\.1|mid_block\.attentions\.0)\.", ".mid.attn_1."),
    (r"\.(middle\.2|mid_block\.resnets\.1)\.", ".mid.block_2."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.to_qkv\.", ".qkv."),
    (r"\.resample\.1\.", ".resample."),
    (r"\.gamma$", ".weight"),
)
# half . flat index or level . index within the level, or the level's resampler . layer
_STAGE = re.compile(
    r"(?P<half>encoder|decoder)\.(?:down_blocks|downsamples|up_blocks|upsamples)\.(?P<outer>\d+)\."
    r"(?:(?:resnets|downsamples|upsamples)\.(?P<inner>\d+)\.|(?P<last>downsampler|upsampler|upsamplers\.0)\.)?"
    r"(?P<layer>(?P<first>\w+)\..+)"
)
_KINDS = dict.fromkeys(("norm1", "conv1", "norm2", "conv2", "shortcut"), "block")
_KINDS |= dict.fromkeys(("norm", "qkv", "proj"), "attn") | dict.fromkeys(("resample", "time_conv"), "resample")
_WITH_SHORTCUTS = re.compile(r"encoder\.(down_blocks\.\d+\.resnets|downsamples\.\d+\.downsamples)\.")


def is_causal(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a Wan or Qwen-Image autoencoder, in either naming."""
    have = set(keys)
    diffusers = {"encoder.conv_in.weight", "encoder.norm_out.gamma", "quant_conv.weight"}
    return diffusers <= have or {"encoder.conv1.weight", "encoder.head.0.gamma", "conv1.weight"} <= have


def to_ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors under our names, as views, and the keys that an image does not need.

    A convolution's view is not contiguous and keeps all its taps in memory. Keys that belong to no known layer are
    passed on under their own name.
    """
    names = _our_names(state)
    ours = {name: _image_part(key, state[key]) for key, name in names.items() if ".time_conv." not in name}
    return ours, [key for key, name in names.items() if ".time_conv." in name]


def options(config: Mapping[str, Any] | None, shapes: Shapes, *, where: str = "checkpoint") -> dict[str, Any]:
    """`AutoencoderConfig` options as plain data, without image_size, from the shapes of the file's tensors.

    config  diffusers' config.json where there is one: it tells `patch_size`, and what else it states must agree
    where   path that starts every error message

    Raises `CheckpointError` for shapes that make no such net, and for a config that describes another one.
    """
    names = _our_names(shapes)
    every = {names[key]: _image_shape(key, shape) for key, shape in shapes.items()}
    kept = {name: shape for name, shape in every.items() if ".time_conv." not in name}
    for name in ("encoder.conv_in", "encoder.down.0.block.0.conv1", "decoder.conv_in", "decoder.up.0.block.0.conv1"):
        if f"{name}.weight" not in kept:
            raise CheckpointError(f"{where}: no {name}.weight (in our names): not the whole of a Wan-like autoencoder")
    patch = (config or {}).get("patch_size")
    if patch is not None and (not isinstance(patch, int) or kept["encoder.conv_in.weight"][1] % max(patch, 1) ** 2):
        raise CheckpointError(f"{where}: config.json has patch_size = {patch}: not of this net; take its own, or none")
    net = _net_options(kept, patch)
    timed = [i for i in range(len(net["multipliers"])) if f"encoder.down.{i}.time_conv.weight" in every]
    if any(_WITH_SHORTCUTS.match(key) for key in shapes):
        net |= {"shortcuts": True, "temporal_levels": timed}
    z_channels = kept["decoder.conv_in.weight"][1]
    _check_shapes(net, z_channels, kept, where)
    _check_config(config or {}, net, z_channels, timed, where)
    bottleneck = {"kind": "gaussian", "dim": z_channels}
    return {"net": net, "bottleneck": bottleneck, "z_channels": z_channels, "quant_conv": 1}


def statistics(
    config: Mapping[str, Any] | None, z_channels: int = 16, *, where: str = "checkpoint"
) -> tuple[list[float], list[float]] | None:
    """(mean, standard deviation) of each latent channel; normalised latents are (z - mean) / std.

    From `latents_mean` and `latents_std` of the config; without them the published ones of 16 (Wan 2.1, Qwen-Image) or
    48 channels (Wan 2.2), and None for other widths. Raises `CheckpointError` for lists of the wrong length or sign.
    """
    stated = [(config or {}).get(name) for name in ("latents_mean", "latents_std")]
    if stated == [None, None]:
        return PUBLISHED_STATISTICS.get(z_channels)
    mean, std = ([float(value) for value in values or ()] for values in stated)
    if not len(mean) == len(std) == z_channels or min(std) <= 0:
        raise CheckpointError(
            f"{where}: latents_mean has {len(mean)} and latents_std {len(std)} values: "
            f"expected {z_channels} each, deviations above 0"
        )
    return mean, std


def _our_names(keys: Iterable[str]) -> dict[str, str]:
    """Our name of each key; layers over time get one too, though no parameter of ours has it."""
    plain = {}
    for key in keys:
        plain[key] = key
        for pattern, new in _RENAMES:
            plain[key] = re.sub(pattern, new, plain[key])
    stages = {key: match for key, name in plain.items() if (match := _STAGE.fullmatch(name))}
    for half, ours in (("encoder", "down"), ("decoder", "up")):
        mine = {key: match for key, match in stages.items() if match["half"] == half}
        places = _places({_position(match): _KINDS.get(match["first"], "") for match in mine.values()})
        coarsest = max((level for level, _ in places.values()), default=0)
        for key, match in mine.items():
            level, slot = places[_position(match)]
            layer = match["layer"] if match["first"] == "time_conv" else f"{slot}{match['layer']}"
            plain[key] = f"{half}.{ours}.{level if half == 'encoder' else coarsest - level}.{layer}"
    return plain


def _position(match: re.Match[str]) -> tuple[int, float]:
    """(outer index, inner index) that sort in running order; the inner one is -1 where there is a single index."""
    inner = float("inf") if match["last"] else match["inner"]
    return int(match["outer"]), -1 if inner is None else float(inner)


def _places(kinds: Mapping[tuple[int, float], str]) -> dict[tuple[int, float], tuple[int, str]]:
    """(level in running order, prefix of the layer's name) of each position; a flat list ends levels by resampling."""
    places, level, blocks = {}, 0, 0
    for (outer, inner), kind in sorted(kinds.items()):
        if inner >= 0 and outer != level:
            level, blocks = outer, 0
        prefix = {"block": f"block.{blocks}.", "attn": f"attn.{blocks - 1}."}.get(kind, "")
        places[outer, inner] = level, prefix
        blocks += kind == "block"
        if inner < 0 and kind == "resample":
            level, blocks = level + 1, 0
    return places


def _image_part(key: str, value: Tensor) -> Tensor:
    if key.endswith(".gamma"):
        return value.reshape(-1, 1, 1)
    return value[:, :, -1] if value.ndim == 5 else value


def _image_shape(key: str, shape: Sequence[int]) -> tuple[int, ...]:
    if key.endswith(".gamma"):
        return (prod(shape), 1, 1)
    return (*shape[:2], *shape[3:]) if len(shape) == 5 else tuple(shape)


def _net_options(shapes: Mapping[str, tuple[int, ...]], patch: int | None) -> dict[str, Any]:
    """Options of the net that these shapes suggest; whether they all fit it remains to be checked."""

    def found(pattern: str) -> list[int]:
        return sorted({int(match[1]) for name in shapes if (match := re.match(pattern, name))})

    width, folded = shapes["encoder.conv_in.weight"][:2]
    levels = found(r"encoder\.down\.(\d+)\.")
    firsts = [shapes.get(f"encoder.down.{i}.block.0.conv1.weight", (0,))[0] for i in levels]
    multipliers = [first // width for first in firsts]
    decoder_width = shapes["decoder.up.0.block.0.conv1.weight"][0] // max(multipliers[0], 1)
    if patch is None:  # the smallest that leaves red, green and blue, with or without opacity
        patch = next((p for p in range(1, 9) if folded in (3 * p**2, 4 * p**2)), 1)
    return {
        "kind": "causal",
        "channels": width,
        "decoder_channels": None if decoder_width == width else decoder_width,
        "multipliers": multipliers,
        "blocks": len(found(r"encoder\.down\.0\.block\.(\d+)\.")),
        "attention_levels": found(r"encoder\.down\.(\d+)\.attn\."),
        "decoder_attention_levels": found(r"decoder\.up\.(\d+)\.attn\."),
        "patch": patch,
        "image_channels": folded // patch**2,
    }


def _check_shapes(net: Mapping[str, Any], z_channels: int, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse shapes that are not those of the net, parameter by parameter."""
    lists = {name: tuple(value) for name, value in net.items() if isinstance(value, list)}
    try:
        built = CausalConfig(**(dict(net) | lists))
    except ValueError as error:
        raise CheckpointError(f"{where}: its shapes make no Wan-like autoencoder: {error}") from error
    with torch.device("meta"):
        halves = {"encoder.": CausalEncoder(built, 2 * z_channels), "decoder.": CausalDecoder(built, z_channels)}
    expected = {half + name: tuple(v.shape) for half, part in halves.items() for name, v in part.state_dict().items()}
    for name, width in (("quant_conv", 2 * z_channels), ("post_quant_conv", z_channels)):
        expected |= {f"{name}.weight": (width, width, 1, 1), f"{name}.bias": (width,)}
    for name in (*expected, *shapes):
        if expected.get(name) != shapes.get(name):
            raise CheckpointError(
                f"{where}: {name} (in our names) has shape {shapes.get(name, 'none (missing)')}, expected "
                f"{expected.get(name, 'no such tensor')} beside the others: not one whole Wan-like autoencoder"
            )


def _check_config(
    config: Mapping[str, Any], net: Mapping[str, Any], z_channels: int, timed: list[int], where: str
) -> None:
    """Refuse a config that states something else than the shapes; what it does not state is not compared."""
    levels, folded = len(net["multipliers"]), net["image_channels"] * net["patch"] ** 2
    found: dict[str, Any] = {
        "base_dim": net["channels"],
        "decoder_base_dim": net["decoder_channels"] or net["channels"],
        "z_dim": z_channels,
        "dim_mult": net["multipliers"],
        "num_res_blocks": net["blocks"],
        "is_residual": net.get("shortcuts", False),
        "temperal_downsample": [i in timed for i in range(levels - 1)],
        "in_channels": folded,
        "input_channels": folded,
        "out_channels": folded,
    }
    if not net.get("shortcuts"):  # levels with shortcuts never have attention; other scales than these are unused
        found["attn_scales"] = [2.0**-level for level in net["attention_levels"]]
        if config.get("attn_scales") is not None:
            scales = [2.0**-level for level in range(levels)]
            config = {**config, "attn_scales": [scale for scale in scales if scale in config["attn_scales"]]}
    for name, value in found.items():
        if config.get(name) is not None and config[name] != value:
            raise CheckpointError(
                f"{where}: config.json has {name} = {config[name]}, the tensors have {value}: "
                "take the config that belongs to the weights, or none"
            )
