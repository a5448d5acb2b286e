"""AutoencoderKL, AutoencoderKLFlux2 and VQModel of diffusers: what their config.json says of options of ours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tokenizers_mm.checkpoints.families import conv, factors
from tokenizers_mm.checkpoints.families.diffusers_class import Need
from tokenizers_mm.checkpoints.families.reader import About, Contents
from tokenizers_mm.weights import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizers_mm.models import Autoencoder, AutoencoderConfig

# What these nets have, fixed.
_FIXED = conv.LDM_NET | {"patch": 1, "norm": "group", "activation": "silu"}
_FIXED |= {"downsample": "corner", "upsample": "nearest"}
_BLOCKS = (("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"))
_BATCH_EPS = 1e-4
CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2", "VQModel")
# Entries that change nothing, and those that `options` and `statistics` read.
IDLE = ("force_upcast", "lookup_from_codebook", "batch_norm_momentum", "batch_norm_eps", "sample_size", *factors.NAMES)


def options(given: Contents) -> dict[str, Any]:
    """Options that shapes tell, and from a config.json of these classes what no shape shows."""
    found = conv.options(given)
    if given.about.get("_class_name") not in CLASSES:
        around = [name for name in ("quant_conv", "post_quant_conv") if found[name]]
        if len(around) == 1:  # only diffusers' classes can have one of them, and say so
            raise CheckpointError(
                f"{given.where}: {around[0]} alone: expected quant_conv and post_quant_conv, or none; copy it again, "
                "or give the config.json of its class in diffusers"
            )
        return found
    downsampling = 2 ** (len(found["net"]["multipliers"]) - 1) * found["latent_patch"]
    net = found["net"] | {"groups": given.about.get("norm_num_groups", 32)}
    return found | {"net": net, "image_size": image_size(given.about.get("sample_size"), downsampling)}


def image_size(stated: Any, downsampling: int) -> list[int]:
    """The stated size where it fits the downsampling, else the first square from 256 on that does."""
    sides = [*stated] if isinstance(stated, (list, tuple)) else [stated, stated]
    if len(sides) == 2 and all(isinstance(s, int) and s >= downsampling and s % downsampling == 0 for s in sides):
        return sides
    return [math.ceil(256 / downsampling) * downsampling] * 2


def entries(config: AutoencoderConfig, ours: Any, need: Need) -> dict[str, Any]:
    """Entries that the three classes share, of a tokenizer with the convolutional net `ours`."""
    for name, value in _FIXED.items():
        need(f"net.{name}", getattr(ours, name), value)
    need("net.multipliers[0]", ours.multipliers[0], 1)
    blocks, levels = ours.per_level("blocks"), len(ours.widths)
    need("net.blocks", blocks, (blocks[0],) * levels)
    need("net.decoder_blocks", ours.per_level("decoder_blocks"), (blocks[0] + 1,) * levels)
    attention = ours.attention_levels if ours.decoder_attention_levels is None else ours.decoder_attention_levels
    return {
        "act_fn": "silu",
        "block_out_channels": list(ours.widths),
        "down_block_types": [_BLOCKS[0][i in ours.attention_levels] for i in range(levels)],
        "in_channels": ours.image_channels,
        "latent_channels": config.z_channels,
        "layers_per_block": blocks[0],
        "mid_block_add_attention": ours.middle_attention,
        "norm_num_groups": ours.groups,
        "norm_type": "group",
        "out_channels": ours.image_channels,
        "sample_size": max(config.image_size),  # one number in diffusers; other sizes work as before
        "up_block_types": [_BLOCKS[1][i in attention] for i in reversed(range(levels))],
    }


def kl(config: AutoencoderConfig, need: Need) -> dict[str, Any]:
    """config.json of AutoencoderKL, without factors."""
    before, after = around(config)
    need("quant_conv", before, 0, 1)
    need("post_quant_conv", after, 0, 1)
    need("z_channels", config.z_channels, config.bottleneck["dim"])
    found = entries(config, config.net, need) | {"use_quant_conv": bool(before), "use_post_quant_conv": bool(after)}
    del found["norm_type"]
    return found


def is_plain(config: AutoencoderConfig) -> bool:
    """Whether AutoencoderKL has words for this shape of latents and decoder; else AutoencoderKLFlux2 may."""
    ours: Any = config.net
    return config.latent_patch == 1 and ours.decoder_widths == ours.widths


def flux2(config: AutoencoderConfig, need: Need) -> dict[str, Any]:
    """config.json of AutoencoderKLFlux2, without the epsilon of its latent norm."""
    ours: Any = config.net
    return kl(config, need) | {
        "decoder_block_out_channels": None if ours.decoder_widths == ours.widths else list(ours.decoder_widths),
        "patch_size": [config.latent_patch] * 2,
    }


def vq(config: AutoencoderConfig, need: Need) -> dict[str, Any]:
    """config.json of VQModel."""
    before, after = around(config)
    need("bottleneck.metric", config.bottleneck.get("metric", "euclidean"), "euclidean")
    need("quant_conv", before, 1)
    need("post_quant_conv", after, 1)
    ours: Any = config.net
    need("net.decoder_multipliers", ours.decoder_multipliers, None, ours.multipliers)
    book = {"num_vq_embeddings": config.bottleneck["size"], "vq_embed_dim": config.bottleneck["dim"]}
    return entries(config, ours, need) | book


def kl_tensors(tokenizer: Autoencoder, need: Need) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Factors of the latents; they become latents_mean and latents_std where channels differ."""
    return factors.entries(tokenizer.latent_mean_D, tokenizer.latent_std_D), {}


def flux2_tensors(tokenizer: Autoencoder, need: Need) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The latent norm, whose variance and epsilon make the square of the deviation."""
    import torch

    mean_D, std_D = (value.detach().float().cpu() for value in (tokenizer.latent_mean_D, tokenizer.latent_std_D))
    variance_D = std_D.double().square()
    eps = min(_BATCH_EPS, float(variance_D.min()))
    norm = {
        "bn.running_mean": mean_D,
        "bn.running_var": (variance_D - eps).float(),
        "bn.num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }
    return {"batch_norm_eps": eps}, norm


def batch_statistics(state: Any, about: About) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents from the norm that FLUX.2 has after its encoder."""
    eps = about.get("batch_norm_eps", _BATCH_EPS)
    return state["bn.running_mean"].float(), (state["bn.running_var"].float() + eps).sqrt()


def vq_tensors(tokenizer: Autoencoder, need: Need) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The codebook, whose rows a SimVQ computes."""
    bottleneck: Any = tokenizer.bottleneck
    return {"scaling_factor": 1.0}, {"quantize.embedding.weight": bottleneck.rows().detach()}


def around(config: AutoencoderConfig) -> tuple[int, int]:
    """Kernels of the convolutions before and after the bottleneck."""
    before, after = config.quant_conv, config.post_quant_conv
    return before, before if after is None else after
