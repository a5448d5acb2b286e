"""A fused tokenizer as config.json has it, and the way back to its halves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tokenizers_mm.config import ConfigError
from tokenizers_mm.saving import Saved
from tokenizers_mm.weights import Provenance

__all__ = ["FusedConfig", "Half", "How"]

How = Literal["channel", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Half:
    """One half of a fused tokenizer: what stands at the top of config.json for any other tokenizer."""

    kind: str
    model: dict[str, Any]
    origin: Provenance | None = None

    def rebuild(
        self, kinds: Mapping[str, type[Saved]], state: Mapping[str, Tensor], *, where: str, weights: str
    ) -> Saved:
        """The tokenizer that this half was; see `Saved.rebuild`. `kinds` are what it may be, by name."""
        if self.kind not in kinds:
            raise ConfigError(f"{where}.kind = {self.kind}: expected one of {', '.join(kinds)}")
        made = kinds[self.kind].rebuild(self.model, state, where=where, weights=weights)
        made.provenance = self.origin
        return made


@dataclass(frozen=True, kw_only=True)
class FusedConfig:
    """Both halves, and how they are joined."""

    how: How
    semantic: Half
    perceptual: Half
