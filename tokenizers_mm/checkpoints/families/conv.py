"""What all families of the convolutional lineage share: the names of latent diffusion, and options read off shapes.

    encoder.conv_in  encoder.down.i.block.j.{norm1,conv1,norm2,conv2,nin_shortcut}  encoder.down.i.attn.j.{norm,q,k,v,
    proj_out}  encoder.down.i.downsample.conv  encoder.mid.{block_1,attn_1,block_2}  encoder.norm_out  encoder.conv_out
    decoder likewise with up.i, level 0 at full resolution;  quant_conv  post_quant_conv  bottleneck.*

Facts about each naming come from the public code that writes it.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Contents, Naming
from tokenizers_mm.weights import CheckpointError

CODEBOOK, LOGITS = "bottleneck.codebook_KD", "bottleneck.to_logits.weight"

LDM_SIGNATURE = (r"encoder\.down\.0\.block\.0\.norm1\.weight", r"decoder\.up\.0\.block\.0\.norm1\.weight")
LDM = Naming(
    name="ldm",
    signature=LDM_SIGNATURE,
    names=Names(
        """
        quantize.embedding.weight    bottleneck.codebook_KD
        *                            *
        """
    ),
)
# The convolutions around the bottleneck stand inside the nets (FLUX.2, Show-o).
INSIDE = Naming(
    name="inside",
    signature=(*LDM_SIGNATURE, r"encoder\.quant_conv\.weight", r"decoder\.post_quant_conv\.weight"),
    names=Names(
        """
        encoder.quant_conv.*         quant_conv.*
        decoder.post_quant_conv.*    post_quant_conv.*
        *                            *
        """
    ),
)

# diffusers counts the decoder's levels from the coarsest; files from before 2023 have the second spelling of attention.
_DIFFUSERS = """
encoder.down_blocks.{i}.resnets.{j}.{block}.*                encoder.down.{i}.block.{j}.{block}.*
encoder.down_blocks.{i}.attentions.{j}.{norm}.*              encoder.down.{i}.attn.{j}.{norm}.*
encoder.down_blocks.{i}.attentions.{j}.{project}.*           encoder.down.{i}.attn.{j}.{project}.*         linear
encoder.down_blocks.{i}.downsamplers.0.conv.*                encoder.down.{i}.downsample.conv.*
decoder.up_blocks.{-i}.resnets.{j}.{block}.*                 decoder.up.{i}.block.{j}.{block}.*
decoder.up_blocks.{-i}.attentions.{j}.{norm}.*               decoder.up.{i}.attn.{j}.{norm}.*
decoder.up_blocks.{-i}.attentions.{j}.{project}.*            decoder.up.{i}.attn.{j}.{project}.*           linear
decoder.up_blocks.{-i}.upsamplers.0.conv.*                   decoder.up.{i}.upsample.conv.*
{encoder|decoder}.mid_block.resnets.{j}.{block}.*            {encoder|decoder}.mid.block_{j+1}.{block}.*
{encoder|decoder}.mid_block.attentions.0.{norm}.*            {encoder|decoder}.mid.attn_1.{norm}.*
{encoder|decoder}.mid_block.attentions.0.{project}.*         {encoder|decoder}.mid.attn_1.{project}.*      linear
{encoder|decoder}.conv_norm_out.*                            {encoder|decoder}.norm_out.*
{encoder|decoder}.{conv_in|conv_out}.*                       {encoder|decoder}.{conv_in|conv_out}.*
quant_conv.*                                                 quant_conv.*
{after}.*                                                    {after}.*
quantize.embedding.weight                                    bottleneck.codebook_KD
"""


def diffusers_names(after: str = "post_quant_conv") -> Names:
    """Names of diffusers' AutoencoderKL, VQModel and AutoencoderKLFlux2.

    after  name of the convolution after the bottleneck, "theirs=ours" where ours is another
    """
    return Names(
        _DIFFUSERS,
        block="norm1 conv1 norm2 conv2 conv_shortcut=nin_shortcut",
        norm="group_norm=norm spatial_norm=norm",
        project="to_q=q to_k=k to_v=v to_out.0=proj_out query=q key=k value=v proj_attn=proj_out",
        after=after,
    )


DIFFUSERS = Naming(
    name="diffusers",
    signature=(r"encoder\.down_blocks\.0\.resnets\.0\.norm1\.weight", r"decoder\.conv_norm_out\.weight"),
    names=diffusers_names(),
)

# What the nets of latent diffusion have in common; a file that has something else is of another family.
LDM_NET: dict[str, Any] = {
    "middle_blocks": 2, "bias": True, "encoder_out": 3, "modulation": False, "block_input_skip": True,
    "downsample": frozenset({"corner", None}), "upsample": frozenset({"nearest", None}),  # None with a single level
}  # fmt: skip
# Depth of the published nets; general families take any, if the decoder has one block more at every level.
DEPTH: dict[str, Any] = {"blocks": 2, "decoder_blocks": None, "decoder_attention_levels": None}
# What training leaves beside a tokenizer: losses, and the teachers that it was aligned with.
LEFT = (r"loss\..*", r"discriminator\..*", "logvar", "colorize", r"foundation_model\..*", r"linear_proj\..*")
# Codebooks of public files were trained by gradients, and further training must not replace their rows.
TRAINED = {"codebook": "gradient", "revive": 0.0}


def needs(around: int | None = None, **net: Any) -> dict[str, Any]:
    """Options that a file must have, for `Family`: kernel of the convolutions beside the bottleneck, and of the net."""
    beside = {} if around is None else {"quant_conv": around, "post_quant_conv": around}
    return beside | {f"net.{name}": value for name, value in net.items()}


def options(given: Contents, codebook: str = CODEBOOK) -> dict[str, Any]:
    """`AutoencoderConfig` options that the shapes of a convolutional tokenizer's tensors tell.

    The bottleneck is "gaussian" (twice as many channels leave the encoder as enter the decoder), "vq" (a codebook),
    "gumbel" (a codebook beside a map to logits), or "bits", where there are no weights in it and the row says the kind.
    Raises `CheckpointError` naming the layer that is missing or contradicts the others.
    """
    net, shapes, where = _net(given), given.shapes, given.where
    z_out, z_in = given.shape("encoder.conv_out.weight")[0], given.shape("decoder.conv_in.weight")[1]
    before = shapes.get("quant_conv.weight", (z_out, z_out, 0, 0))
    after = shapes.get("post_quant_conv.weight", (z_in, z_in, 0, 0))
    bottleneck: dict[str, Any] = {"kind": "gaussian" if before[0] == 2 * after[1] else "bits", "dim": after[1]}
    if codebook in shapes:
        size, dim = shapes[codebook][:2]
        bottleneck = {"kind": "gumbel" if LOGITS in shapes else "vq", "size": size, "dim": dim}
    dim = bottleneck["dim"]
    channels = 2 * dim if bottleneck["kind"] == "gaussian" else dim
    if before[0] != channels or after[1] != dim:
        raise CheckpointError(
            f"{where}: {before[0]} channels go into the bottleneck, {dim} channels wide, and {after[1]} into the "
            f"decoder; expected {channels} and {dim}: not one tokenizer's file, or not whole"
        )
    stacked = shapes.get("bn.running_mean", (dim,))[0]
    patch = round((stacked / dim) ** 0.5)
    if patch**2 * dim != stacked:
        raise CheckpointError(f"{where}: bn.running_mean ({stacked},): no square patches of {dim} latents")
    around = {"z_channels": z_in, "quant_conv": before[2], "post_quant_conv": after[2]}
    return {"bottleneck": bottleneck, "net": net, "latent_patch": patch, **around}


def on_scales(found: dict[str, Any], scales: tuple[int, ...], inner: dict[str, Any], **others: Any) -> dict[str, Any]:
    """These options with a multi-scale bottleneck around that of the file, at the image size of its last scale."""
    side = scales[-1] * 2 ** (len(found["net"]["multipliers"]) - 1)
    inner = {**found["bottleneck"], **inner}
    bottleneck = {"kind": "multiscale", "scales": scales, "inner": inner, **others}
    return found | {"bottleneck": bottleneck, "image_size": (side, side)}


def _net(given: Contents) -> dict[str, Any]:
    channels, image_channels = given.shape("encoder.conv_in.weight")[:2]
    widths, blocks, attention = _side(given, "encoder.down")
    up_widths, up_blocks, up_attention = _side(given, "decoder.up")
    if len(widths) != len(up_widths):
        raise CheckpointError(
            f"{given.where}: {len(widths)} levels in the encoder, {len(up_widths)} in the decoder; expected as many; "
            "copy it again"
        )
    wide = [shape for key, shape in given.shapes.items() if key.endswith(".nin_shortcut.weight")]
    net: dict[str, Any] = {
        "channels": channels,
        "image_channels": image_channels,
        "multipliers": [width / channels for width in widths],
        "decoder_multipliers": None if up_widths == widths else [width / channels for width in up_widths],
        "blocks": _one(blocks),
        "decoder_blocks": None if up_blocks == [count + 1 for count in blocks] else _one(up_blocks),
        "attention_levels": attention,
        "decoder_attention_levels": None if up_attention == attention else up_attention,
        "middle_blocks": len(given.numbers(r"encoder\.mid\.block_(\d+)\.norm1\.weight")),
        "middle_attention": "encoder.mid.attn_1.norm.weight" in given.shapes,
        "bias": "encoder.conv_in.bias" in given.shapes,
        "encoder_out": given.shape("encoder.conv_out.weight")[2],
        "modulation": "decoder.adaptive.0.gamma.weight" in given.shapes,
        "block_input_skip": not wide or any(shape[0] != shape[1] for shape in wide),
    }
    if len(widths) > 1:
        net["downsample"] = "corner" if "encoder.down.0.downsample.conv.weight" in given.shapes else "average"
        upsample = given.shape("decoder.up.1.upsample.conv.weight")
        net["upsample"] = "depth" if upsample[0] == 4 * upsample[1] else "nearest"
    return net


def _side(given: Contents, name: str) -> tuple[list[int], list[int], list[int]]:
    """Widths and residual blocks of each level of one half, from full resolution, and the levels with attention."""
    given.shape(f"{name}.0.block.0.norm1.weight")
    pattern = re.escape(name)
    levels = range(len(given.numbers(rf"{pattern}\.(\d+)\.block\.0\.norm1\.weight")))
    widths = [given.shape(f"{name}.{i}.block.0.conv2.weight")[0] for i in levels]
    blocks = [len(given.numbers(rf"{pattern}\.{i}\.block\.(\d+)\.norm1\.weight")) for i in levels]
    return widths, blocks, [i for i in levels if f"{name}.{i}.attn.0.norm.weight" in given.shapes]


def _one(counts: list[int]) -> int | list[int]:
    """One number where all are the same."""
    return counts[0] if len(set(counts)) == 1 else counts
