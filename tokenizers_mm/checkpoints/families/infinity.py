"""Infinity's multi-scale bits (https://arxiv.org/abs/2412.04431)."""

from __future__ import annotations

from typing import Any

from tokenizers_mm.checkpoints.families import conv
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Contents, Family, Naming, Reader

SCALES = (1, 2, 4, 6, 8, 12, 16)
# Every convolution and every norm stands in a wrapper of its own.
_NAMES = Names(
    """
    *.{conv}.conv.{weight|bias}    *.{conv}.{weight|bias}
    *.{norm}.norm.{weight|bias}    *.{norm}.{weight|bias}
    *                              *
    """,
    conv="conv_in conv_out conv1 conv2 nin_shortcut conv",
    norm="norm1 norm2 norm_out",
)
_WRAPPED = (r"encoder\.conv_in\.conv\.weight", r"encoder\.down\.0\.block\.0\.norm1\.norm\.weight")


def _options(given: Contents) -> dict[str, Any]:
    found = conv.options(given)
    # Every bit is a stream: 2^dim codes fit no vocabulary.
    bits = {"kind": "bsq", "entropy": 0.0, "streams": found["bottleneck"]["dim"]}
    if found["bottleneck"]["kind"] != "bits":
        return found
    return conv.on_scales(found, SCALES, bits, phi=0, upscale="bilinear")


READER = Reader(
    namings=(Naming(name="infinity", signature=_WRAPPED, names=_NAMES), conv.LDM),
    options=_options,
    needs={
        **conv.needs(0, **conv.LDM_NET, **conv.DEPTH, attention_levels=(), middle_attention=False),
        "bottleneck.kind": "multiscale",
    },
    dropped=(*conv.LEFT, r"quantizer?\.lfq\..*"),
    families=(
        Family(
            name="infinity",
            title="Infinity's multi-scale bits, f16 and f8",
            paper="https://arxiv.org/abs/2412.04431",
            ema=False,
            code_licence="MIT",
            weights_licence="MIT",
            parameters=110.1,
        ),
    ),
)
