"""MaskGIT's VQGAN (https://arxiv.org/abs/2202.04200), as PyTorch has it."""

from __future__ import annotations

from tokenizers_mm.checkpoints.families import conv
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Family, Naming, Reader

_NAMES = Names(
    """
    decoder.up.{i}.upsample_conv.*    decoder.up.{i}.upsample.conv.*
    {encoder|decoder}.mid.{i}.*       {encoder|decoder}.mid.block_{i+1}.*
    quantize.embedding.weight         bottleneck.codebook_KD
    *                                 *
    """
)

READER = Reader(
    namings=(
        Naming(
            name="maskgit",
            signature=(r"encoder\.mid\.0\.norm1\.weight", r"decoder\.up\.1\.upsample_conv\.weight"),
            names=_NAMES,
        ),
    ),
    options=conv.options,
    needs={
        **conv.needs(
            0, blocks=2, decoder_blocks=2, middle_blocks=2, attention_levels=(), decoder_attention_levels=None
        ),
        **conv.needs(middle_attention=False, bias=False, encoder_out=1, modulation=False, block_input_skip=False),
        **conv.needs(downsample="average", upsample="nearest"),
        "bottleneck.kind": "vq",
    },
    dropped=conv.LEFT,
    families=(
        Family(
            name="maskgit_vq",
            title="MaskGIT's VQGAN, f16, pixels in [0, 1]",
            paper="https://arxiv.org/abs/2202.04200",
            config={"bottleneck": conv.TRAINED, "pixel_mean": (0.0,), "pixel_std": (1.0,)},
            code_licence="Apache-2.0",
            parameters=54.3,
        ),
    ),
)
