"""The text tower of an open_clip model, alone, as a text encoder: frozen, or trained further.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020.

Shape letters: B batch, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from tokenizers_mm.towers.clip_network import ClipTokenizer, open_clip_model
from tokenizers_mm.towers.frozen import freeze

__all__ = ["OpenClipText", "OpenClipTextConfig"]


@dataclass(frozen=True, kw_only=True)
class OpenClipTextConfig:
    """A text tower of open_clip.

    name       "MODEL/PRETRAINED", as in open_clip.list_pretrained()
    trainable  whether it is trained further; a frozen one has no parameters, and only a projection is trained, where
               the widths differ
    """

    kind: Literal["open_clip"] = "open_clip"
    name: str
    trainable: bool = False


class OpenClipText(nn.Module):
    """Captions to vectors [B, dim]: the model's projected embedding, and a linear map where its width is not `dim`."""

    def __init__(
        self, config: OpenClipTextConfig, dim: int, *, weights: Path | None = None, random_init: bool = False
    ) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        model, _, self.weights_sha256 = open_clip_model(config.name, None, weights, random_init)
        for unused in ("visual", "logit_scale", "logit_bias"):  # parameters that no text reaches would never train
            delattr(model, unused)
        self.model: nn.Module = model if config.trainable else freeze(model)
        self.ids = ClipTokenizer(config.name)
        with torch.no_grad():
            width = model.encode_text(torch.ones(1, model.context_length, dtype=torch.int64)).shape[1]
        self.projection = nn.Identity() if width == dim else nn.Linear(width, dim)
        self.train()

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Vectors [B, dim], not of unit length; `ValueError` naming a caption that is empty or no text."""
        ids_BT = self.ids(captions).to(next(self.model.buffers()).device)
        text_BE: Tensor = self.model.encode_text(ids_BT)  # type: ignore[operator]
        projected_BD: Tensor = self.projection(text_BE)
        return projected_BD

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen tower stays in eval."""
        super().train(mode)
        if not self.config.trainable:
            self.model.eval()
        return self
