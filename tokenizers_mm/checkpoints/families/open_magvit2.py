"""Open-MAGVIT2 (https://arxiv.org/abs/2409.04410): bits of a net whose decoder is normalised by the latent."""

from __future__ import annotations

from tokenizers_mm.checkpoints.families import conv
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Family, Naming, Reader

_NAMES = Names(
    """
    encoder.down.{i}.downsample.{weight|bias}     encoder.down.{i}.downsample.conv.{weight|bias}
    decoder.up.{i}.upsample.conv1.*               decoder.up.{i}.upsample.conv.*
    {encoder|decoder}.mid_block.{i}.*             {encoder|decoder}.mid.block_{i+1}.*
    *                                             *
    """
)

READER = Reader(
    namings=(
        Naming(
            name="open_magvit2",
            signature=(r"encoder\.mid_block\.0\.norm1\.weight", r"decoder\.adaptive\.0\.gamma\.weight"),
            names=_NAMES,
        ),
    ),
    options=conv.options,
    needs={
        **conv.needs(0, modulation=True, bias=False, encoder_out=1, upsample="depth", middle_attention=False),
        **conv.needs(blocks=int, decoder_blocks=int, attention_levels=(), decoder_attention_levels=None),
        "net.downsample": "corner",  # as far as shapes tell; the padding is the row's
        "bottleneck.kind": "bits",
    },
    dropped=conv.LEFT,
    families=(
        Family(
            name="open_magvit2",
            title="Open-MAGVIT2, f16: bits, the first one least significant",
            paper="https://arxiv.org/abs/2409.04410",
            config={"bottleneck": {"kind": "lfq", "bit_order": "lsb"}, "net": {"downsample": "centre"}},
            code_licence="Apache-2.0",
            parameters=115.1,
        ),
    ),
)
