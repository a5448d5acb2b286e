"""Tokenizers as folders that diffusers' own classes load: AutoencoderKL, AutoencoderKLFlux2, VQModel, AutoencoderDC."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from quantizers import VQ, SimVQ
from tokenizers_mm.checkpoints import diffusers_names
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.nets import ConvConfig, DCConfig
from tokenizers_mm.saving import model_card, write_whole
from tokenizers_mm.weights import CheckpointError

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_WRITTEN = ("AutoencoderKL", "AutoencoderKLFlux2", "VQModel", "AutoencoderDC")
_BATCH_EPS = 1e-4
# What the nets of AutoencoderKL, AutoencoderKLFlux2 and VQModel have, fixed.
_CONV = {
    "middle_blocks": 2,
    "patch": 1,
    "norm": "group",
    "activation": "silu",
    "bias": True,
    "downsample": "corner",
    "upsample": "nearest",
    "encoder_out": 3,
    "modulation": False,
    "block_input_skip": True,
}
_BLOCKS = {"residual": "ResBlock", "attention": "EfficientViTBlock"}
_NORMS = {"rms": "rms_norm", "batch": "batch_norm"}


def to_diffusers(tokenizer: Autoencoder, folder: Path | str) -> None:
    """Write config.json and diffusion_pytorch_model.safetensors; the class is named in the first.

    A tokenizer of diffusers' that is there already is replaced; README.md and licence stay. Statistics of latents
    become scaling_factor and shift_factor where all channels have the same, else latents_mean and latents_std, which
    not every pipeline of diffusers reads. Raises `CheckpointError` naming the option that diffusers cannot express, and
    for folders with other content.
    """
    folder = Path(folder)
    config, state = _described(tokenizer, folder)

    def write(partial: Path) -> None:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({key: value.contiguous() for key, value in state.items()}, partial / _WEIGHTS, {"format": "pt"})

    write_whole(
        folder,
        write,
        replaces=("config.json", _WEIGHTS),
        check=_check,
        card=lambda: model_card(tokenizer),
        new_card=False,
    )


def _described(tokenizer: Autoencoder, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights."""
    config, kind = tokenizer.config, tokenizer.bottleneck.kind
    net, need = config.net, _Needs(folder)
    need("linear", config.linear, False)
    need("pixel_mean", set(config.pixel_mean), {0.5})
    need("pixel_std", set(config.pixel_std), {0.5})
    need("latent_positions", config.latent_positions, False)
    state = {
        name: value.detach()
        for name, value in tokenizer.state_dict().items()
        if not name.startswith(("bottleneck.", "latent_"))
    }
    if isinstance(net, DCConfig):
        need("bottleneck.kind", kind, "identity")
        return _deep(tokenizer, net, need), state
    if not isinstance(net, ConvConfig):
        raise CheckpointError(
            f"{folder}: net.kind={net.kind!r}: temporal taps of these nets are not kept, and diffusers' classes need "
            "them; use the files they came from, or `save`"
        )
    shared = _conv(tokenizer, net, need)
    if kind != "gaussian":
        described, codebook_KD = _codes(tokenizer, need)
        return shared | described, diffusers_names.to_diffusers(state | {diffusers_names.CODEBOOK: codebook_KD})
    described, extra = _latents(tokenizer, net, need)
    return shared | described, diffusers_names.to_diffusers(state) | extra


class _Needs:
    """Raises `CheckpointError` for an option of ours that is not what diffusers has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, option: str, found: Any, *allowed: Any) -> None:
        if found not in allowed:
            raise CheckpointError(
                f"{self.folder}: {option}={found!r} cannot be written for diffusers, which has "
                f"{' or '.join(map(repr, allowed))}; use our own format (`save`)"
            )


def _conv(tokenizer: Autoencoder, net: ConvConfig, need: _Needs) -> dict[str, Any]:
    """Options that AutoencoderKL, AutoencoderKLFlux2 and VQModel share."""
    for name, value in _CONV.items():
        need(f"net.{name}", getattr(net, name), value)
    need("net.multipliers[0]", net.multipliers[0], 1)
    blocks, levels = net.per_level("blocks"), len(net.widths)
    need("net.blocks", blocks, (blocks[0],) * levels)
    need("net.decoder_blocks", net.per_level("decoder_blocks"), (blocks[0] + 1,) * levels)
    attention = net.attention_levels if net.decoder_attention_levels is None else net.decoder_attention_levels
    down = ["AttnDownEncoderBlock2D" if i in net.attention_levels else "DownEncoderBlock2D" for i in range(levels)]
    up = ["AttnUpDecoderBlock2D" if i in attention else "UpDecoderBlock2D" for i in reversed(range(levels))]
    return {
        "_class_name": "",  # stands first, like in diffusers' own files
        "act_fn": "silu",
        "block_out_channels": net.widths,
        "down_block_types": down,
        "in_channels": net.image_channels,
        "latent_channels": tokenizer.config.z_channels,
        "layers_per_block": blocks[0],
        "mid_block_add_attention": net.middle_attention,
        "norm_num_groups": net.groups,
        "out_channels": net.image_channels,
        "sample_size": max(tokenizer.config.image_size),  # one number in diffusers; other sizes work as before
        "up_block_types": up,
    }


def _latents(tokenizer: Autoencoder, net: ConvConfig, need: _Needs) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The rest of AutoencoderKL's or AutoencoderKLFlux2's options, and tensors of the latter's latent norm."""
    config = tokenizer.config
    before, after = _around(tokenizer)
    need("quant_conv", before, 0, 1)
    need("post_quant_conv", after, 0, 1)
    need("z_channels", config.z_channels, tokenizer.bottleneck.dim)
    convolutions = {"use_quant_conv": bool(before), "use_post_quant_conv": bool(after)}
    mean_D, std_D = (value.detach().float().cpu() for value in (tokenizer.latent_mean_D, tokenizer.latent_std_D))
    if config.latent_patch == 1 and net.decoder_widths == net.widths:
        return {"_class_name": "AutoencoderKL"} | convolutions | _factors(mean_D, std_D), {}
    flux2 = {
        "_class_name": "AutoencoderKLFlux2",
        "decoder_block_out_channels": None if net.decoder_widths == net.widths else net.decoder_widths,
        "patch_size": [config.latent_patch] * 2,
    }
    variance_D = std_D.double().square()
    eps = min(_BATCH_EPS, float(variance_D.min()))  # variance + eps must give the square of the deviation
    norm = {
        "bn.running_mean": mean_D,
        "bn.running_var": (variance_D - eps).float(),
        "bn.num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }
    return flux2 | convolutions | {"batch_norm_eps": eps}, norm


def _factors(mean_D: Tensor, std_D: Tensor) -> dict[str, Any]:
    """One factor and shift where all channels have the same, else lists; as short as float32 allows."""
    if bool((mean_D == mean_D[0]).all() and (std_D == std_D[0]).all()):
        shift = _shortest(float(mean_D[0]), lambda value: value)
        scale = _shortest(1 / float(std_D[0]), lambda value: 1 / value)
        return {"scaling_factor": scale, "shift_factor": shift or None, "latents_mean": None, "latents_std": None}
    mean, std = ([_shortest(float(one), lambda value: value) for one in part] for part in (mean_D, std_D))
    return {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": mean, "latents_std": std}


def _shortest(value: float, back: Callable[[float], float]) -> float:
    """The shortest decimal that gives the same float32 statistic: 0.18215, not 0.18214999488."""
    rounded = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    wanted = np.float32(back(value))
    return next((short for short in rounded if short and np.float32(back(short)) == wanted), value)


def _codes(tokenizer: Autoencoder, need: _Needs) -> tuple[dict[str, Any], Tensor]:
    """The rest of VQModel's options, and its codebook [K, D]."""
    bottleneck, (before, after) = tokenizer.bottleneck, _around(tokenizer)
    need("bottleneck.kind", bottleneck.kind, "gaussian", "vq", "simvq")
    assert isinstance(bottleneck, VQ | SimVQ)
    if isinstance(bottleneck, VQ):
        need("bottleneck.metric", bottleneck.metric, "euclidean")
    need("quant_conv", before, 1)
    need("post_quant_conv", after, 1)
    net = tokenizer.config.net
    assert isinstance(net, ConvConfig)
    need("net.decoder_multipliers", net.decoder_multipliers, None, net.multipliers)
    described = {
        "_class_name": "VQModel",
        "num_vq_embeddings": bottleneck.size,
        "vq_embed_dim": bottleneck.dim,
        "scaling_factor": 1.0,
    }
    return described, bottleneck.rows().detach()


def _deep(tokenizer: Autoencoder, net: DCConfig, need: _Needs) -> dict[str, Any]:
    """config.json of AutoencoderDC, whose parameter names are ours."""
    before, after = _around(tokenizer)
    need("quant_conv", before, 0)
    need("post_quant_conv", after, 0)
    need("latent_patch", tokenizer.config.latent_patch, 1)
    factors = _factors(tokenizer.latent_mean_D.detach().float().cpu(), tokenizer.latent_std_D.detach().float().cpu())
    need("latent_mean_D", factors["shift_factor"] or factors["latents_mean"] or 0, 0)
    need("latent_std_D", factors["latents_std"] or "one number", "one number")
    described: dict[str, Any] = {"_class_name": "AutoencoderDC"}
    for side, levels in (("encoder", net.encoder_levels), ("decoder", net.decoder_levels)):
        described |= {
            f"{side}_block_out_channels": [level.width for level in levels],
            f"{side}_block_types": [_BLOCKS[level.block] for level in levels],
            f"{side}_layers_per_block": [level.layers for level in levels],
            f"{side}_qkv_multiscales": [list(level.scales) for level in levels],
        }
    return described | {
        "attention_head_dim": net.head_width,
        "decoder_act_fns": list(net.decoder_activations),
        "decoder_conv_act_fn": net.last_activation,
        "decoder_in_shortcut": net.decoder_shortcut,
        "decoder_norm_types": [_NORMS[norm] for norm in net.decoder_norms],
        "downsample_block_type": "pixel_unshuffle" if net.downsample == "unshuffle" else "conv",
        "encoder_out_shortcut": net.encoder_shortcut,
        "in_channels": net.image_channels,
        "latent_channels": tokenizer.bottleneck.dim,
        "scaling_factor": factors["scaling_factor"],
        "upsample_block_type": "pixel_shuffle" if net.upsample == "shuffle" else "interpolate",
    }


def _around(tokenizer: Autoencoder) -> tuple[int, int]:
    """Kernels of the convolutions before and after the bottleneck."""
    before, after = tokenizer.config.quant_conv, tokenizer.config.post_quant_conv
    return before, before if after is None else after


def _check(folder: Path) -> None:
    """Refuse a folder whose config.json is not of a class that is written here."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict) or config.get("_class_name") not in _WRITTEN:
        raise CheckpointError(f"{path}: expected _class_name of {', '.join(_WRITTEN)}, found {str(config)[:80]}")
