"""Parts of a tokenizer that training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from tokenizers_mm.models import Autoencoder

Part = Literal["encoder", "decoder", "semantic"]

# Everything up to the tokens, so that frozen they stay what they are; everything after them; what reads features off.
_CHILDREN: dict[Part, tuple[str, ...]] = {
    "encoder": ("encoder", "quant_conv", "linear_in", "bottleneck"),
    "decoder": ("decoder", "post_quant_conv", "linear_out"),
    "semantic": ("semantic",),
}


def freeze(autoencoder: Autoencoder, parts: Sequence[Part]) -> list[nn.Module]:
    """Take the gradients of these parts away; returns their modules, which must also stay in eval mode.

    Raises `ValueError` for an unknown part, and where nothing would be left to train.
    """
    unknown = [part for part in parts if part not in _CHILDREN]
    if unknown:
        raise ValueError(f"freeze={list(parts)}: {unknown[0]!r} is not one of {', '.join(_CHILDREN)}")
    names = [name for part in parts for name in _CHILDREN[part]]
    frozen = [child for name, child in autoencoder.named_children() if name in names]
    for child in frozen:
        child.requires_grad_(False)
    if not any(p.requires_grad for p in autoencoder.parameters()):
        raise ValueError(f"freeze={list(parts)}: nothing is left to train; freeze less")
    return frozen
