"""Emu3's vision tokenizer (https://arxiv.org/abs/2409.18869), read for still images, and MoVQ.

Emu3's files come in the original naming and in that of transformers, MoVQ's (https://arxiv.org/abs/2209.09002) in its
own and in that of diffusers. All hold norms that read the codes, by which they are told. Of each convolution over time
an image meets the last tap, except where the encoder halves time; so Emu3's files cannot be written back.
"""

from __future__ import annotations

from typing import Any

from tokenizers_mm.checkpoints.families import conv, conv_diffusers
from tokenizers_mm.checkpoints.families.diffusers_class import DiffusersClass, Need
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Contents, Family, Naming, Reader
from tokenizers_mm.weights import CheckpointError

_TIME = r"encoder\.time_res_stack\.0\.norm1\.weight"
# A convolution over time stands in a wrapper, in two where it changes the number of frames.
_EMU3 = """
quant_conv.conv.*                                quant_conv.*                                last_tap
post_quant_conv.conv.*                           decoder.post_quant_conv.*                   last_tap
{side}.time_res_stack.{i}.{inner}.conv.*         {side}.time_res_stack.{i}.{inner}.*         last_tap
encoder.time_conv.{i}.conv.conv.*                encoder.time_conv.{i}.*
decoder.time_conv.{i}.conv.conv.*                decoder.time_conv.{i}.*                     last_tap
quantize.embedding.weight                        bottleneck.codebook_KD
"""
# Layers of a kind stand together, and norms beside the attention they belong to.
_TRANSFORMERS = """
{side}.{level}.{i}.attn_norms.{j}.*              {side}.{level}.{i}.attn.{j}.norm.*
{side}.{level}.{i}.attn.{j}.{project}.*          {side}.{level}.{i}.attn.{j}.{project}.*     linear
{side}.{level}.{i}.*                             {side}.{level}.{i}.*
{side}.middle_block.attn_norm.*                  {side}.mid.attn_1.norm.*
{side}.middle_block.attn_1.{project}.*           {side}.mid.attn_1.{project}.*               linear
{side}.middle_block.*                            {side}.mid.*
"""
_MOVQ = """
post_quant_conv.*                                decoder.post_quant_conv.*
quantize.embedding.weight                        bottleneck.codebook_KD
"""
_REST = "*    *"
_WORDS = {"side": "encoder decoder", "inner": "conv1 conv2"}


def _options(given: Contents) -> dict[str, Any]:
    """Options from shapes. `CheckpointError` names a layer that is missing, and widths that do not fit together."""
    where, found = given.where, given.numbers
    (width, image_channels), (size, dim) = given.shape("encoder.conv_in.weight")[:2], given.shape(conv.CODEBOOK)[:2]
    z_in = given.shape("decoder.conv_in.weight")[1]
    if z_in != dim:
        raise CheckpointError(
            f"{where}: {z_in} channels go into the decoder, and code vectors have {dim}: expected as many; "
            "no net here takes other widths, choose another model"
        )
    levels = found(r"encoder\.down\.(\d+)\.")
    widths = [given.shapes.get(f"encoder.down.{i}.block.0.conv2.weight", (0,))[0] for i in levels]
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
    sample_size = given.about.get("sample_size", 512)
    return {
        "net": net,
        "bottleneck": {"kind": "vq", "size": size, "dim": dim, **conv.TRAINED},
        "z_channels": dim,
        "quant_conv": 1,
        "post_quant_conv": 0,
        "image_size": conv_diffusers.image_size(sample_size, 2 ** (len(levels) - 1)),
    }


def _described(config: Any, need: Need) -> dict[str, Any]:
    """config.json of a VQModel whose norms read the codes."""
    codes = {"num_vq_embeddings": config.bottleneck["size"], "vq_embed_dim": config.bottleneck["dim"]}
    return conv_diffusers.entries(config, config.net.spatial, need) | codes | {"norm_type": "spatial"}


READER = Reader(
    namings=(
        Naming(
            name="transformers",
            signature=(_TIME, r"encoder\.middle_block\.attn_norm\.weight"),
            names=Names(
                _EMU3 + _TRANSFORMERS + _REST,
                level="down_block.down=down up_block.up=up",
                project="q_proj=q k_proj=k v_proj=v out_proj=proj_out",
                **_WORDS,
            ),
        ),
        Naming(
            name="emu3",
            signature=(_TIME, r"decoder\.norm_out\.conv_y\.weight"),
            names=Names(_EMU3 + _REST, **_WORDS),
        ),
        Naming(name="movq", signature=(r"decoder\.norm_out\.conv_y\.weight",), names=Names(_MOVQ + _REST)),
        Naming(
            name="diffusers",
            signature=(r"decoder\.conv_norm_out\.conv_y\.weight",),
            names=conv.diffusers_names(after="post_quant_conv=decoder.post_quant_conv"),
        ),
    ),
    options=_options,
    needs={"bottleneck.kind": "vq"},
    dropped=conv.LEFT,
    families=(
        Family(
            name="emu3",
            title="Emu3's vision tokenizer, f8 with 32768 codes, for single images",
            paper="https://arxiv.org/abs/2409.18869",
            namings=("transformers", "emu3"),
            code_licence="Apache-2.0",
            weights_licence="Apache-2.0",
            parameters=270.6,
        ),
        Family(
            name="movq",
            title="MoVQ, f8: a decoder normalised by the codes (Kandinsky 2)",
            paper="https://arxiv.org/abs/2209.09002",
            namings=("movq", "diffusers"),
            code_licence="Apache-2.0",
            parameters=67.8,
        ),
    ),
    diffusers=(
        DiffusersClass(
            name="VQModel",
            when={"norm_type": "spatial"},
            family="movq",
            describe=_described,
            idle=conv_diffusers.IDLE,
        ),
    ),
)
