"""Key-value cache: what earlier positions were projected to, so that sampling runs each position once.

Shape letters: B batch, G heads of keys, L new positions, K all positions so far, D channels of a head.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

__all__ = ["KeyValueCache", "KeyValues"]


class KeyValues:
    """Keys and values [B, G, K, D] of one layer."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None

    def extend(self, k_BGLD: Tensor, v_BGLD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new positions and return the keys and values of all."""
        if self._kept is None:
            self._kept = k_BGLD, v_BGLD
        else:
            self._kept = torch.cat([self._kept[0], k_BGLD], 2), torch.cat([self._kept[1], v_BGLD], 2)
        return self._kept


class KeyValueCache(defaultdict[int, KeyValues]):
    """`KeyValues` by the index of their layer: empty at first, filled by `Transformer.forward`."""

    def __init__(self) -> None:
        super().__init__(KeyValues)
