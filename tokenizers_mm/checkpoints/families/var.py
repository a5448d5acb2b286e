"""VAR's multi-scale VQ (https://arxiv.org/abs/2404.02905)."""

from __future__ import annotations

import re
from typing import Any

from tokenizers_mm.checkpoints.families import conv
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Contents, Family, Naming, Reader
from tokenizers_mm.weights import CheckpointError

_CODEBOOK = "bottleneck.quantizer.codebook_KD"
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
# Queries, keys and values are one convolution; those after upsampling are shared by some scales, by none, or by all.
_NAMES = Names(
    f"""
    *.qkv.*                                   *.{{third}}.*
    quantize.quant_resi.qresi_ls.{{i}}.*      bottleneck.convolutions.{{i}}.*
    quantize.quant_resi.{{i}}.*               bottleneck.convolutions.{{i}}.*
    quantize.quant_resi.qresi.*               bottleneck.convolutions.0.*
    quantize.embedding.weight                 {_CODEBOOK}
    *                                         *
    """,
    third="q k v",
)


def _options(given: Contents) -> dict[str, Any]:
    phi = len(given.numbers(r"bottleneck\.convolutions\.(\d+)\.weight"))
    if phi != len(SCALES) and any(re.match(r"quantize\.quant_resi\.\d", key) for key in given.keys):
        raise CheckpointError(f"{given.where}: quantize.quant_resi has {phi} layers, not {len(SCALES)}; copy it again")
    return conv.on_scales(conv.options(given, _CODEBOOK), SCALES, conv.TRAINED, phi=phi)


READER = Reader(
    namings=(
        Naming(
            name="var",
            signature=(r"encoder\.mid\.attn_1\.qkv\.weight", r"quantize\.quant_resi\..*weight"),
            names=_NAMES,
        ),
    ),
    options=_options,
    needs={
        **conv.needs(3, **conv.LDM_NET, **conv.DEPTH, attention_levels=(4,)),
        "bottleneck.inner.kind": "vq",
    },
    dropped=(*conv.LEFT, r"quantize\.ema_vocab_hit_SV"),
    families=(
        Family(
            name="var",
            title="VAR's multi-scale VQ, f16",
            paper="https://arxiv.org/abs/2404.02905",
            code_licence="MIT",
            weights_licence="MIT",
            parameters=108.8,
        ),
    ),
)
