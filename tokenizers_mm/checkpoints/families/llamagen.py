"""LlamaGen's VQ (https://arxiv.org/abs/2406.06525), which Janus keeps inside its language model."""

from __future__ import annotations

from tokenizers_mm.checkpoints.families import conv
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Family, Naming, Reader

# The decoder's levels are counted from the coarsest, and the layers of the middle are one list.
_NAMES = Names(
    """
    encoder.conv_blocks.{i}.res.{j}.*     encoder.down.{i}.block.{j}.*
    encoder.conv_blocks.{i}.*               encoder.down.{i}.*
    decoder.conv_blocks.{-i}.res.{j}.*    decoder.up.{i}.block.{j}.*
    decoder.conv_blocks.{-i}.*              decoder.up.{i}.*
    {encoder|decoder}.mid.{middle}.*      {encoder|decoder}.mid.{middle}.*
    quantize.embedding.weight                 bottleneck.codebook_KD
    *                                         *
    """,
    middle="0=block_1 1=attn_1 2=block_2",
)
_BY_ANGLE = {**conv.TRAINED, "metric": "cosine"}

READER = Reader(
    namings=(Naming(name="llamagen", signature=(r"encoder\.conv_blocks\.0\.res\.0\.norm1\.weight",), names=_NAMES),),
    options=conv.options,
    needs={
        **conv.needs(1, **conv.LDM_NET, **conv.DEPTH, attention_levels=frozenset({(3,), (4,)})),
        "bottleneck.kind": "vq",
    },
    dropped=(*conv.LEFT, r"quantize\.codebook_used"),
    families=(
        Family(
            name="janus",
            title="Janus and Janus-Pro VQ-16, inside the language model's file",
            paper="https://arxiv.org/abs/2410.13848",
            prefix="gen_vision_model.",
            config={"bottleneck": _BY_ANGLE, "image_size": (384, 384)},
            code_licence="MIT",
            weights_licence="DeepSeek Model License: use restrictions",
            restricted=True,
            parameters=71.7,
        ),
        Family(
            name="llamagen",
            title="LlamaGen VQ-16 and VQ-8",
            paper="https://arxiv.org/abs/2406.06525",
            config={"bottleneck": _BY_ANGLE},
            code_licence="MIT",
            weights_licence="MIT",
            parameters=71.7,
        ),
    ),
)
