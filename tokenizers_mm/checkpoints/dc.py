"""DC-AE files (https://arxiv.org/abs/2410.10733): options from diffusers' config.json or from shapes alone, and names.

Weights come in two layouts: diffusers' (AutoencoderDC), whose names are ours, and the authors' (EfficientViT, DC-Gen),
whose fused and nested names `from_original` turns into ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from tokenizers_mm.checkpoints.dc_names import (
    SIDES,
    from_original as from_original,
    is_diffusers as is_diffusers,
    is_original as is_original,
)
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.nets import DCConfig, DCDecoder, DCEncoder, Level
from tokenizers_mm.weights import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


# diffusers' words -> ours; what a config.json does not say takes the defaults of diffusers' class.
_BLOCKS = {"ResBlock": "residual", "EfficientViTBlock": "attention"}
_NORMS = {"rms_norm": "rms", "batch_norm": "batch"}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "mish": "mish"}
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
}

# Published factors of the files in the authors' layout, whose config.json holds nothing but this name.
_FACTORS = {
    "dc-ae-f32c32-in-1.0": 0.3189,
    "dc-ae-f32c32-mix-1.0": 0.4552,
    "dc-ae-f64c128-in-1.0": 0.2889,
    "dc-ae-f64c128-mix-1.0": 0.4538,
    "dc-ae-f128c512-in-1.0": 0.4883,
    "dc-ae-f128c512-mix-1.0": 0.3620,
    "dc-ae-f32c32-sana-1.0": 0.41407,
    "dc-ae-f32c32-sana-1.1": 0.41407,
    "dc-ae-lite-f32c32-sana-1.1": 0.41407,
}


def statistics(config: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Mean and standard deviation of every latent channel, from the published factor; None where none is known."""
    if config is None:
        return None
    name = str(config.get("model_name", "")).rpartition("/")[2]
    factor = config.get("scaling_factor", _FACTORS.get(name))
    if factor is None:
        return None
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor > 0:
        raise CheckpointError(f"config.json: scaling_factor = {factor!r}: expected a number above 0; correct it")
    return 0.0, 1 / factor


def options(config: Mapping[str, Any] | None, shapes: Shapes, *, where: str = "DC-AE") -> dict[str, Any]:
    """Options of an AutoencoderConfig, as plain data, from a config.json and the shapes of the weights.

    config  diffusers' config.json; None, or the authors' (which only names the model), reads everything from shapes
    shapes  shape of every weight, in either layout
    where   what they were read from; it starts every error message

    Raises `CheckpointError`, naming the key, where config and weights contradict each other or a weight is missing.
    """
    try:
        return _options(config, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _options(config: Mapping[str, Any] | None, shapes: Shapes) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if is_original(shapes):
        # Only this layout says in its names whether the latent has shortcuts.
        told["encoder_shortcut"] = any(key.startswith("encoder.project_out.main.") for key in shapes)
        told["decoder_shortcut"] = any(key.startswith("decoder.project_in.main.") for key in shapes)
        empty = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        shapes = {key: tuple(tensor.shape) for key, tensor in from_original(empty).items()}
    described = config is not None and (config.get("_class_name") or not config.keys().isdisjoint(_DEFAULTS))
    net, z = _from_config(config) if config is not None and described else _from_shapes(shapes)
    net |= told
    _check(net, z, shapes, "config.json" if described else "weights")
    return {"net": net, "bottleneck": {"kind": "identity", "dim": z}, "z_channels": z, "quant_conv": 0}


def _from_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Net options and latent channels that a config.json of diffusers describes."""
    found = config.get("_class_name", "AutoencoderDC")
    if found != "AutoencoderDC":
        raise CheckpointError(
            f"config.json: _class_name = {found!r}: expected AutoencoderDC; use the weights' own file"
        )
    c = _DEFAULTS | {key: value for key, value in config.items() if key in _DEFAULTS}
    if not isinstance(c["latent_channels"], int) or c["latent_channels"] < 1:
        raise CheckpointError(f"config.json: latent_channels = {c['latent_channels']!r}: expected a positive integer")
    widths = c["encoder_block_out_channels"]
    levels = len(widths) if isinstance(widths, (list, tuple)) else 1  # what is no list is refused with the other types
    net: dict[str, Any] = {"kind": "dc"}
    for side, ours in (("encoder", ""), ("decoder", "decoder_")):
        net[f"{ours}widths"] = _plain(c[f"{side}_block_out_channels"])
        net[f"{ours}layers"] = _plain(c[f"{side}_layers_per_block"])
        net[f"{ours}blocks"] = _words(c, f"{side}_block_types", _BLOCKS, levels)
        net[f"{ours}scales"] = _plain(c[f"{side}_qkv_multiscales"])
    net |= {
        "decoder_norms": _words(c, "decoder_norm_types", _NORMS, levels),
        "decoder_activations": _words(c, "decoder_act_fns", _ACTIVATIONS, levels),
        "last_activation": _words(c, "decoder_conv_act_fn", _ACTIVATIONS, 1)[0],
        # diffusers compares with one word each and takes the other way for every other word.
        "downsample": "unshuffle" if c["downsample_block_type"] == "pixel_unshuffle" else "conv",
        "upsample": "nearest" if c["upsample_block_type"] == "interpolate" else "shuffle",
        "encoder_shortcut": c["encoder_out_shortcut"],
        "decoder_shortcut": c["decoder_in_shortcut"],
        "head_width": c["attention_head_dim"],
        "image_channels": c["in_channels"],
    }
    return net, c["latent_channels"]


def _plain(value: Any) -> Any:
    """Tuples as lists, however deep."""
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _words(config: Mapping[str, Any], key: str, table: Mapping[str, str], count: int) -> list[str]:
    """Our word for each level; diffusers allows a single word for all of them."""
    value = config[key]
    words = list(value) if isinstance(value, (list, tuple)) else [value] * count
    for word in words:
        if str(word) not in table:
            raise CheckpointError(f"config.json: {key} = {word!r}: expected one of {', '.join(table)}")
    return [table[word] for word in words]


def _from_shapes(shapes: Shapes) -> tuple[dict[str, Any], int]:
    """Net options and latent channels as far as shapes tell; the rest is that of the published models.

    Shapes say nothing of: the width of a level 0 without layers (half of level 1); a level's activation (ReLU with
    batch norm, SiLU otherwise); the head width where no level has extra scales (32); the shortcuts around the latent
    (there, except in the models whose encoder has no attention, DC-AE 1.1 and 1.5); the last activation (ReLU, but
    SiLU in the models whose decoder has no attention, these and DC-AE-Lite).
    """
    z, image_channels = _shape(shapes, "encoder.conv_out.weight")[0], _first(shapes, "encoder.conv_in")[1]
    encoder = _levels(shapes, "encoder", _shape(shapes, "encoder.conv_out.weight")[1])
    decoder = _levels(shapes, "decoder", _shape(shapes, "decoder.conv_in.weight")[0])
    mixes = [shape for key, shape in shapes.items() if key.endswith(".to_qkv_multiscale.0.proj_out.weight")]
    shortcuts = any(level.block == "attention" for level in encoder)
    net: dict[str, Any] = {"kind": "dc"}
    for ours, levels in (("", encoder), ("decoder_", decoder)):
        net[f"{ours}widths"] = [level.width for level in levels]
        net[f"{ours}layers"] = [level.layers for level in levels]
        net[f"{ours}blocks"] = [level.block for level in levels]
        net[f"{ours}scales"] = [list(level.scales) for level in levels]
    net |= {
        "decoder_norms": [level.norm for level in decoder],
        "decoder_activations": [level.activation for level in decoder],
        "last_activation": "relu" if any(level.block == "attention" for level in decoder) else "silu",
        "downsample": _downsample(shapes, encoder),
        "upsample": _upsample(shapes, decoder, image_channels),
        "encoder_shortcut": shortcuts and encoder[-1].width % z == 0,
        "decoder_shortcut": shortcuts and decoder[-1].width % z == 0,
        "head_width": mixes[0][1] if mixes else 32,
        "image_channels": image_channels,
    }
    return net, z


def _levels(shapes: Shapes, side: str, last_width: int) -> list[Level]:
    """Levels of one side; a level that resamples has a coarser one after it, even if no weight belongs to that one."""
    prefix = SIDES[side]
    indices = {int(match[1]) for key in shapes if (match := re.match(rf"{prefix}\.(\d+)\.", key))}
    if not indices:
        raise CheckpointError(f"{prefix}.*: not in the file, so this is no whole DC-AE; use a file with both halves")
    levels = [_level(shapes, f"{prefix}.{index}") for index in range(max(indices) + 1)]
    if levels[0].layers == 0 and len(levels) > 1:
        levels[0] = levels[1]._replace(width=levels[1].width // 2, layers=0, block="residual", scales=())
    if _resampler(shapes, f"{prefix}.{max(indices)}"):
        levels.append(levels[-1]._replace(width=last_width, layers=0))
    return levels


def _level(shapes: Shapes, prefix: str) -> Level:
    """The level under prefix, as its first block has it; `_check` compares the others."""
    inside = {key[len(prefix) + 1 :]: shape for key, shape in shapes.items() if key.startswith(f"{prefix}.")}
    firsts = [name for name in inside if re.fullmatch(r"\d+\.(conv1|attn\.to_out)\.weight", name)]
    kernels = sorted((name, shape[-1]) for name, shape in inside.items() if name.endswith(".proj_in.weight"))
    batch = any(name.endswith("running_mean") for name in inside)
    return Level(
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


def _downsample(shapes: Shapes, levels: list[Level]) -> str:
    """Unshuffling leaves a quarter of the coarser width to the convolution."""
    resampler = _resampler(shapes, "encoder.down_blocks.0") or shapes.get("encoder.conv_in.conv.weight")
    return "conv" if resampler and len(levels) > 1 and resampler[0] == levels[1].width else "unshuffle"


def _upsample(shapes: Shapes, levels: list[Level], image_channels: int) -> str:
    """Shuffling asks four times the finer width of the convolution."""
    resampler, width = _resampler(shapes, "decoder.up_blocks.0"), levels[0].width
    if resampler is None:
        resampler, width = shapes.get("decoder.conv_out.conv.weight"), image_channels
    return "nearest" if resampler and resampler[0] == width else "shuffle"


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    """Shape of a weight that every DC-AE has."""
    if key not in shapes:
        raise CheckpointError(f"{key}: not in the file, so this is no whole DC-AE; use a file with both halves")
    return shapes[key]


def _first(shapes: Shapes, module: str) -> tuple[int, ...]:
    """Shape of a convolution that may sit inside a change of resolution."""
    return shapes.get(f"{module}.conv.weight") or _shape(shapes, f"{module}.weight")


def _check(net: Mapping[str, Any], z: int, shapes: Shapes, source: str) -> None:
    """Refuse weights that differ from the network which the options build, naming the first that does."""
    try:
        config = parse(DCConfig, dict(net), source)
        with torch.device("meta"):
            nets = {"encoder": DCEncoder(config, z), "decoder": DCDecoder(config, z)}
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    expected = {
        f"{side}.{key}": list(tensor.shape) for side, net in nets.items() for key, tensor in net.state_dict().items()
    }
    found = {key: list(shape) for key, shape in shapes.items() if key.startswith(("encoder.", "decoder."))}
    by = "config.json asks" if source == "config.json" else "the weights beside it ask"
    for key in [*expected, *found]:
        optional = key.endswith(".num_batches_tracked")  # a counter of training steps that some writers drop
        if expected.get(key) != found.get(key) and not (optional and key not in found):
            raise CheckpointError(
                f"{key}: {found.get(key, 'nothing')} in the file, but {by} for {expected.get(key, 'nothing')}; "
                "use the config.json that came with these weights"
            )
