"""The Wan and Qwen-Image autoencoders (Wan, https://arxiv.org/abs/2503.20314), read for still images.

Two namings hold the same tensors: diffusers' (AutoencoderKLWan, AutoencoderKLQwenImage and, with the time axis already
gone, AutoencoderKLQwenImage21) and the original one (Wan2.1_VAE.pth, Wan2.2_VAE.pth and what is repackaged from them).
Of each 3-D convolution an image meets the last temporal tap, and of the convolutions over time none. So neither can be
written back: the taps that only video meets are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers_mm.checkpoints.families import factors
from tokenizers_mm.checkpoints.families.diffusers_class import DiffusersClass, agree
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import About, Contents, Family, Naming, Reader, Statistics
from tokenizers_mm.weights import CheckpointError

# (mean, standard deviation) of the latent channels, by their number: wan/modules/vae.py of github.com/Wan-Video/Wan2.1,
# which Qwen-Image kept, and wan/modules/vae2_2.py of github.com/Wan-Video/Wan2.2.
# fmt: off
PUBLISHED: dict[int, tuple[list[float], list[float]]] = {
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

_TABLE = """
{around}.{weight|bias}             {around}.{weight|bias}            last_tap
{half}.{ends}.{weight|bias}        {half}.{ends}.{weight|bias}       last_tap
{half}.{out}.gamma                 {half}.{out}.weight               gain
{half}.{middle}.{norm}.gamma       {half}.mid.{middle}.{norm}.weight gain
{half}.{middle}.{layer}.*          {half}.mid.{middle}.{layer}.*     last_tap
{place}.{norm}.gamma               {place}.{norm}.weight             gain
{place}.{layer}.*                  {place}.{layer}.*                 last_tap
"""
# half . flat index or level . index within the level, or the level's resampler . layer
_STAGE = re.compile(
    r"(?P<place>(?P<half>encoder|decoder)\.(?:down_blocks|downsamples|up_blocks|upsamples)\.(?P<outer>\d+)"
    r"(?:\.(?:resnets|downsamples|upsamples)\.(?P<inner>\d+)|\.(?P<last>downsampler|upsampler|upsamplers\.0))?)"
    r"\.(?P<first>\w+)\..+"
)
# Levels that are bridged stand in lists of their own, in both namings.
_BRIDGED = re.compile(r"encoder\.(down_blocks\.\d+\.resnets|downsamples\.\d+\.downsamples)\.")
_KINDS = dict.fromkeys(("residual", "norm1", "conv1", "norm2", "conv2", "conv_shortcut", "shortcut"), "block")
_KINDS |= dict.fromkeys(("norm", "to_qkv", "proj"), "attn") | dict.fromkeys(("resample", "time_conv"), "resample")


def _names(keys: Collection[str]) -> Names:
    """The table, with our place of every stage of the file: a flat list of stages ends a level by resampling."""
    stages = [match for match in map(_STAGE.fullmatch, keys) if match]
    places = {}
    for half, ours in (("encoder", "down"), ("decoder", "up")):
        mine = [match for match in stages if match["half"] == half]
        levels = _levels({_position(match): _KINDS.get(match["first"], "") for match in mine})
        coarsest = max((level for level, _ in levels.values()), default=0)
        for match in mine:
            level, slot = levels[_position(match)]
            places[match["place"]] = f"{half}.{ours}.{level if half == 'encoder' else coarsest - level}{slot}"
    return Names(
        _TABLE,
        around="conv1=quant_conv conv2=post_quant_conv quant_conv post_quant_conv",
        half="encoder decoder",
        ends="conv1=conv_in head.2=conv_out conv_in conv_out",
        out="head.0=norm_out norm_out",
        middle="middle.0=block_1 middle.1=attn_1 middle.2=block_2 "
        "mid_block.resnets.0=block_1 mid_block.attentions.0=attn_1 mid_block.resnets.1=block_2",
        place=" ".join(f"{theirs}={ours}" for theirs, ours in places.items()),
        norm="residual.0=norm1 residual.3=norm2 norm1 norm2 norm",
        layer="residual.2=conv1 residual.6=conv2 conv1 conv2 conv_shortcut=shortcut shortcut to_qkv=qkv proj "
        "resample.1=resample time_conv",
    )


def _position(match: re.Match[str]) -> tuple[int, float]:
    """(outer index, inner index) that sort in running order; the inner one is -1 where there is a single index."""
    inner = float("inf") if match["last"] else match["inner"]
    return int(match["outer"]), -1 if inner is None else float(inner)


def _levels(kinds: Mapping[tuple[int, float], str]) -> dict[tuple[int, float], tuple[int, str]]:
    """(level in running order, slot in the level) of each position; a flat list ends levels by resampling."""
    places, level, blocks = {}, 0, 0
    for (outer, inner), kind in sorted(kinds.items()):
        if inner >= 0 and outer != level:
            level, blocks = outer, 0
        slot = {"block": f".block.{blocks}", "attn": f".attn.{blocks - 1}"}.get(kind, "")
        places[outer, inner] = level, slot
        blocks += kind == "block"
        if inner < 0 and kind == "resample":
            level, blocks = level + 1, 0
    return places


def _options(given: Contents) -> dict[str, Any]:
    """Options that the shapes suggest, and `patch_size` of the config.json, which must agree with them otherwise."""
    about, where, found = given.about, given.where, given.numbers
    width, folded = given.shape("encoder.conv_in.weight")[:2]
    patch = about.get("patch_size")
    if patch is None:  # as published: what leaves red, green and blue, with or without opacity
        patch = next((p for p in (1, 2) if folded in (3 * p**2, 4 * p**2)), 1)
    elif not isinstance(patch, int) or folded % max(patch, 1) ** 2:
        raise CheckpointError(f"{where}: config.json has patch_size = {patch}: not of this net; take its own, or none")
    levels = found(r"encoder\.down\.(\d+)\.")
    multipliers = [given.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] // width for i in levels or [0]]
    decoder_width = given.shape("decoder.up.0.block.0.conv1.weight")[0] // max(multipliers[0], 1)
    net: dict[str, Any] = {
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
    timed = [i for i in levels if f"encoder.down.{i}.time_conv.weight" in given.shapes]
    if any(map(_BRIDGED.match, given.keys)):
        net |= {"shortcuts": True, "temporal_levels": timed}
    z = given.shape("decoder.conv_in.weight")[1]
    agree(*_entries(net, z, timed, about), where)
    bottleneck = {"kind": "gaussian", "dim": z}
    return {"net": net, "bottleneck": bottleneck, "z_channels": z, "quant_conv": 1, "image_size": (512, 512)}


def _entries(net: dict[str, Any], z: int, timed: list[int], about: About) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config.json without scales of no level, which are unused, and what it should say of these weights."""
    levels, folded = len(net["multipliers"]), net["image_channels"] * net["patch"] ** 2
    scales, stated = [2.0**-level for level in range(levels)], about.get("attn_scales")
    entries = {
        "base_dim": net["channels"],
        "decoder_base_dim": net["decoder_channels"] or net["channels"],
        "z_dim": z,
        "dim_mult": net["multipliers"],
        "num_res_blocks": net["blocks"],
        "is_residual": net.get("shortcuts", False),
        "temperal_downsample": [i in timed for i in range(levels - 1)],
        "in_channels": folded,
        "input_channels": folded,
        "out_channels": folded,
    }
    if net.get("shortcuts") or stated is None:  # levels with shortcuts never have attention
        return {key: value for key, value in about.items() if key != "attn_scales"}, entries
    used = [scale for scale in scales if scale in stated]
    return {**about, "attn_scales": used}, entries | {"attn_scales": [scales[i] for i in net["attention_levels"]]}


def _statistics(given: Contents) -> Statistics:
    """`latents_mean` and `latents_std` of the config.json; without them the published ones of 16 or 48 channels."""
    z = given.state["decoder.conv_in.weight"].shape[1]
    if given.about.get("latents_mean") is None and given.about.get("latents_std") is None:
        return PUBLISHED.get(z)
    return factors.statistics(given.about, z, given.where)


READER = Reader(
    namings=(
        Naming(name="diffusers", signature=(r"encoder\.norm_out\.gamma", r"quant_conv\.weight"), names=_names),
        Naming(name="original", signature=(r"encoder\.head\.0\.gamma", r"conv1\.weight"), names=_names),
    ),
    first=("encoder.conv_in", "encoder.conv1"),
    options=_options,
    statistics=_statistics,
    dropped=(r".*\.time_conv\..*",),
    families=(
        Family(
            name="qwen_image",
            title="Qwen-Image's autoencoder, f8 with 16 channels",
            paper="https://arxiv.org/abs/2508.02324",
            code_licence="Apache-2.0",
            weights_licence="Apache-2.0",
        ),
        Family(
            name="wan",
            title="Wan's video autoencoder, for single images",
            paper="https://arxiv.org/abs/2503.20314",
            code_licence="Apache-2.0",
            weights_licence="Apache-2.0",
        ),
    ),
    diffusers=(
        DiffusersClass(name="AutoencoderKLQwenImage", family="qwen_image"),
        DiffusersClass(name="AutoencoderKLQwenImage21", family="qwen_image"),
        DiffusersClass(name="AutoencoderKLWan", family="wan"),
    ),
)
