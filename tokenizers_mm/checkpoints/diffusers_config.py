"""What diffusers' config.json says of AutoencoderKL, VQModel and AutoencoderKLFlux2, as options of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenizers_mm.weights import CheckpointError

Statistics = tuple[Tensor | float, Tensor | float]

# What a config.json does not say takes the defaults of diffusers' class.
_SHARED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": None,
    "mid_block_add_attention": True,
}
_CONVOLUTIONS = {"use_quant_conv": True, "use_post_quant_conv": True}
_FACTORS = {"scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None, "latents_std": None}
_FLUX2 = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "decoder_block_out_channels": None,
    "layers_per_block": 2,
    "latent_channels": 32,
    "batch_norm_eps": 1e-4,
    "patch_size": (2, 2),
}
_VQ = {"latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None, "norm_type": "group"}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": _SHARED | {"latent_channels": 4} | _CONVOLUTIONS | _FACTORS,
    "VQModel": _SHARED | _VQ,
    "AutoencoderKLFlux2": _SHARED | _CONVOLUTIONS | _FLUX2,
}
# Options that do not change what the nets compute.
_IDLE = {"force_upcast", "lookup_from_codebook", "batch_norm_momentum", "scaling_factor"}
_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
CLASSES = tuple(_DEFAULTS)


def config_to_options(config: Mapping[str, Any], *, where: str = "config.json") -> dict[str, Any]:
    """Options of an `AutoencoderConfig`, as plain data, that build the same net.

    config  content of config.json; of a live object, its `config` with `_class_name` added
    where   path that starts every error message

    Raises `CheckpointError` naming the option that our nets do not have.
    """
    _, c = _complete(config, where)
    widths = _numbers(c, "block_out_channels", where)
    decoder = _numbers(c, "decoder_block_out_channels", where) if c.get("decoder_block_out_channels") else widths
    levels, z = len(widths), _number(c, "latent_channels", where)
    down, up = (_attention_levels(c, key, levels, where) for key in _BLOCKS)
    _refuse(c, len(decoder) == levels, "decoder_block_out_channels", f"{levels} numbers", where)
    _refuse(c, c["out_channels"] == c["in_channels"], "out_channels", f"{c['in_channels']}, as in_channels", where)
    # diffusers has SiLU before both last convolutions whatever this says, our nets have one activation everywhere.
    _refuse(c, str(c["act_fn"]).lower() in ("silu", "swish"), "act_fn", "silu", where)
    _refuse(c, c.get("norm_type", "group") == "group", "norm_type", "group", where)
    net: dict[str, Any] = {
        "kind": "conv",
        "channels": widths[0],
        "multipliers": [_ratio(width, widths[0]) for width in widths],
        "blocks": _number(c, "layers_per_block", where),
        "attention_levels": down,
        "decoder_attention_levels": sorted(levels - 1 - i for i in up),
        "middle_attention": bool(c["mid_block_add_attention"]),
        "groups": _number(c, "norm_num_groups", where),
        "image_channels": _number(c, "in_channels", where),
    }
    if decoder != widths:
        net["decoder_multipliers"] = [_ratio(width, widths[0]) for width in decoder]
    options = {"net": net, "z_channels": z} | _around(c, z, where)
    return options | {"image_size": _image_size(c["sample_size"], 2 ** (levels - 1) * options["latent_patch"])}


def statistics(
    config: Mapping[str, Any], state: Mapping[str, Tensor] | None = None, *, where: str = "config.json"
) -> Statistics | None:
    """(mean, standard deviation) of the latents: numbers or one per channel; None where the class has codes.

    state  weights under diffusers' names, which hold FLUX.2's statistics

    A model generates (z - shift_factor) * scaling_factor, or (z - latents_mean) / latents_std * scaling_factor; these
    are those latents. Raises `CheckpointError` for numbers that cannot be meant.
    """
    name, c = _complete(config, where)
    if name == "VQModel":
        return None
    if name == "AutoencoderKLFlux2":
        return _batch_statistics(c, state or {}, where)
    scale = 1.0 if c["scaling_factor"] is None else _real(c, "scaling_factor", where)
    _refuse(c, scale > 0, "scaling_factor", "a number above 0", where)
    if c["latents_mean"] is None and c["latents_std"] is None:
        return (0.0 if c["shift_factor"] is None else _real(c, "shift_factor", where)), 1 / scale
    _refuse(c, not c["shift_factor"], "shift_factor", "none beside latents_mean and latents_std", where)
    mean, std = (_reals(c, key, where) for key in ("latents_mean", "latents_std"))
    _refuse(c, float(std.min()) > 0, "latents_std", "numbers above 0", where)
    return mean, std / scale


def _complete(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Class and options with defaults; `CheckpointError` for options that diffusers has and we do not know."""
    name = str(config.get("_class_name"))
    if name not in _DEFAULTS:
        raise CheckpointError(f"{where}: _class_name = {name}: expected {', '.join(_DEFAULTS)}; choose another model")
    known = _DEFAULTS[name]
    unknown = [key for key in config if key not in known and key not in _IDLE and not key.startswith("_")]
    if unknown:
        raise CheckpointError(
            f"{where}: {unknown[0]} = {config[unknown[0]]!r}: no option of {name} that is known here; "
            f"expected {', '.join(known)}; remove it if the weights do not need it"
        )
    return name, known | {key: value for key, value in config.items() if key in known}


def _around(c: Mapping[str, Any], z: int, where: str) -> dict[str, Any]:
    """Bottleneck and what stands beside it."""
    if "num_vq_embeddings" in c:
        dim = z if c["vq_embed_dim"] is None else _number(c, "vq_embed_dim", where)
        size = _number(c, "num_vq_embeddings", where)
        # The codebook is trained by gradients there too, and further training must not replace its rows.
        bottleneck = {"kind": "vq", "size": size, "dim": dim, "codebook": "gradient", "revive": 0.0}
        return {"bottleneck": bottleneck, "quant_conv": 1, "post_quant_conv": 1, "latent_patch": 1}
    patch = _numbers(c, "patch_size", where) if "patch_size" in c else [1]
    _refuse(c, len(set(patch)) == 1, "patch_size", "the same number twice", where)
    return {
        "bottleneck": {"kind": "gaussian", "dim": z},
        "quant_conv": int(bool(c["use_quant_conv"])),
        "post_quant_conv": int(bool(c["use_post_quant_conv"])),
        "latent_patch": patch[0],
    }


def _batch_statistics(c: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> Statistics:
    found = {key: state.get(f"bn.{key}") for key in ("running_mean", "running_var")}
    mean, var = found.values()
    if mean is None or var is None:
        raise CheckpointError(f"{where}: the weights lack bn.running_mean or bn.running_var: copy them again, whole")
    return mean.float(), (var.float() + _real(c, "batch_norm_eps", where)).sqrt()


def _attention_levels(c: Mapping[str, Any], key: str, levels: int, where: str) -> list[int]:
    plain, attention = _BLOCKS[key]
    types = c[key]
    fits = isinstance(types, (list, tuple)) and len(types) == levels and {*map(str, types)} <= {plain, attention}
    _refuse(c, fits, key, f"{levels} of {plain} or {attention}", where)
    return [i for i, block in enumerate(types) if block == attention]


def _image_size(stated: Any, f: int) -> list[int]:
    """The stated one where it fits the downsampling, else the first from 256 on that does."""
    sides = [*stated] if isinstance(stated, (list, tuple)) else [stated, stated]
    if len(sides) == 2 and all(isinstance(side, int) and side >= f and side % f == 0 for side in sides):
        return sides
    return [math.ceil(256 / f) * f] * 2


def _ratio(width: int, first: int) -> int | float:
    return width // first if width % first == 0 else width / first


def _refuse(c: Mapping[str, Any], fits: bool, key: str, expected: str, where: str) -> None:
    if not fits:
        raise CheckpointError(f"{where}: {key} = {c.get(key)!r}: expected {expected}; choose another model")


def _number(c: Mapping[str, Any], key: str, where: str) -> int:
    value = c[key]
    _refuse(c, type(value) is int and value > 0, key, "a whole number above 0", where)
    return int(value)


def _numbers(c: Mapping[str, Any], key: str, where: str) -> list[int]:
    values = c[key]
    fits = isinstance(values, (list, tuple)) and values and all(type(value) is int and value > 0 for value in values)
    _refuse(c, bool(fits), key, "whole numbers above 0", where)
    return list(values)


def _real(c: Mapping[str, Any], key: str, where: str) -> float:
    value = c[key]
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    _refuse(c, fits, key, "a finite number", where)
    return float(value)


def _reals(c: Mapping[str, Any], key: str, where: str) -> Tensor:
    values, count = c[key], c["latent_channels"]
    fits = isinstance(values, Sequence) and len(values) == count
    fits = fits and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    _refuse(c, fits, key, f"{count} finite numbers", where)
    return torch.tensor(values, dtype=torch.float32)
