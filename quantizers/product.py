"""Product Quantization for Nearest Neighbor Search (Jegou et al., https://doi.org/10.1109/TPAMI.2010.57).

The vector is split into groups of channels, every group is quantized by itself, the results are put side by side and so
are the codes. One quantizer shared by all groups is a multi-head codebook: the groups become more positions.

Shape letters: B batch, N positions, S streams, D channels, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Quantized, Quantizer
from quantizers.inner import Inner, codes_in, inner_quantizers


class Product(Quantizer):
    """`groups` quantizers side by side, on consecutive channels.

    inner   the quantizers of all groups, or that of the first: each of the others gets a new one of its options
    groups  how many; None takes as many as `inner` has
    shared  one instance serves all groups

    The loss is the mean over groups. Streams are those of group 0, then those of group 1, and so on.
    """

    kind = "product"

    def __init__(self, inner: Inner, groups: int | None = None, *, shared: bool = False) -> None:
        super().__init__()
        parts = inner_quantizers(inner, groups, shared, "groups")
        self.quantizers = nn.ModuleList(parts)
        self.groups, self.shared, self._repeated = groups or len(parts), shared, isinstance(inner, Quantizer)
        every = self._every
        self._widths = [part.in_dim for part in every]
        self._streams = [len(part.codes) for part in every]
        self.in_dim, self.dim = sum(self._widths), sum(part.dim for part in every)
        self.codes = tuple(size for part in every for size in part.codes)
        self.invertible = all(part.invertible for part in every)

    @property
    def inner(self) -> Inner:
        """The quantizers inside, in the form that was given: one, or a list."""
        return self._parts[0] if self._repeated else self._parts

    @property
    def _parts(self) -> list[Quantizer]:
        return cast(list[Quantizer], list(self.quantizers))

    @property
    def _every(self) -> list[Quantizer]:
        """The quantizer of every group; one and the same where it is shared."""
        return self._parts * (self.groups if self.shared else 1)

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        if self.shared:
            if mask_BN is not None:
                mask_BN = mask_BN.repeat_interleave(self.groups, 1)
            out = self._parts[0].unchecked(self._folded(z_BND), mask_BN)
            return Quantized(self._unfolded(out.z_BND), self._unfolded(codes_in(out)), out.loss, out.stats)
        outs = [part.unchecked(z, mask_BN) for part, z in self._each(z_BND, self._widths)]
        stats = {f"group{i}_{name}": value for i, out in enumerate(outs) for name, value in out.stats.items()}
        return Quantized(
            torch.cat([out.z_BND for out in outs], -1),
            torch.cat([codes_in(out) for out in outs], -1),
            torch.stack([out.loss for out in outs]).mean(),
            stats,
        )

    def _encode(self, z_BND: Tensor) -> Tensor:
        if self.shared:
            return self._unfolded(self._parts[0]._encode(self._folded(z_BND)))
        return torch.cat([part._encode(z) for part, z in self._each(z_BND, self._widths)], -1)

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        if self.shared:
            return self._unfolded(self._parts[0]._decode(self._folded(codes_BNS)))
        return torch.cat([part._decode(codes) for part, codes in self._each(codes_BNS, self._streams)], -1)

    def _stream_vectors(self, codes_BNS: Tensor) -> Tensor:
        vectors, start = [], 0
        for part, codes in zip(self._every, torch.split(codes_BNS, self._streams, -1), strict=True):
            end = start + part.dim
            vectors.append(F.pad(part._stream_vectors(codes), (start, self.dim - end)))
            start = end
        return torch.cat(vectors, -2)

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        if self.shared:
            return self._unfolded(self._parts[0]._codes_of(self._folded(q_BND)))
        return torch.cat([part._codes_of(q) for part, q in self._each(q_BND, [part.dim for part in self._parts])], -1)

    def _each(self, x_BNC: Tensor, widths: list[int]) -> Iterable[tuple[Quantizer, Tensor]]:
        """Every quantizer with its own channels (or streams)."""
        return zip(self._parts, torch.split(x_BNC, widths, -1), strict=True)

    def _folded(self, x_BNC: Tensor) -> Tensor:
        """Groups of channels (or of streams) as more positions: [B, N * G, C / G]."""
        batch, positions, channels = x_BNC.shape
        return x_BNC.reshape(batch, positions * self.groups, channels // self.groups)

    def _unfolded(self, x_BNC: Tensor) -> Tensor:
        batch, positions, channels = x_BNC.shape
        return x_BNC.reshape(batch, positions // self.groups, channels * self.groups)
