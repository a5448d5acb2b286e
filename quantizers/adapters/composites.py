"""Readers of modules of vector-quantize-pytorch that are made of other modules.

Shape letters: B batch, N positions, S streams, D channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from quantizers.adapters.part import Part, Run, loss_of
from quantizers.adapters.peer import name_of


class Groups(Part):
    """GroupedResidualVQ, GroupedResidualFSQ, GroupedResidualLFQ: channels split into groups, all levels of each."""

    def __init__(self, module: Any, *inside: Part) -> None:
        super().__init__(module, *inside)
        self.in_dim = self.dim = module.dim
        self.codes = tuple(size for group in self.inside for size in group.codes)

    @staticmethod
    def modules_inside(module: Any) -> list[nn.Module]:
        """The groups."""
        return list(module.rvqs)

    def streams(self, index: Tensor, z_BND: Tensor) -> Tensor:
        """Codes of all groups, one after another."""
        return super().streams(torch.cat([*index], -1), z_BND)

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        """See `Part`."""
        codes = torch.split(codes_BNS, [len(group.codes) for group in self.inside], -1)
        return torch.cat([group.vectors(code) for group, code in zip(self.inside, codes, strict=True)], -1)


class Scales(Part):
    """HierarchicalVQ: positions are those of its last scale, codes those of all scales one after another."""

    pointwise = False

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.in_dim = self.dim = module.dim
        self.codes = (max(module.codebook_sizes),)
        self.counts = [math.prod(shape) for shape in module.level_shapes]

    def length(self, positions: int) -> int:
        """Code positions of all scales; `ValueError` unless there are as many positions as the last has."""
        if positions != self.counts[-1]:
            raise ValueError(
                f"z_BND has {positions} positions: expected {self.counts[-1]}, a grid of {self.module.level_shapes[-1]}"
            )
        return sum(self.counts)

    def places(self, positions: int) -> int:
        """Positions of the last scale; `ValueError` unless there are as many codes as all scales have."""
        if positions != sum(self.counts):
            raise ValueError(f"codes_BNS has {positions} positions: all scales have {sum(self.counts)}")
        return int(self.counts[-1])

    def run(self, z_BND: Tensor, mask_BN: Tensor | None) -> Run:
        """See `Part`."""
        shape = self.module.level_shapes[-1]
        mask = None if mask_BN is None else mask_BN.reshape(-1, *shape)
        grid = z_BND.reshape(-1, *shape, self.dim)
        vector, indices, loss = self.module(grid.movedim(-1, 1) if self.module.channel_first else grid, mask=mask)
        vector_BDN = self._flat(vector)
        codes_BN = torch.cat([index.flatten(1) for index in indices], 1).clamp(min=0)
        return vector_BDN, codes_BN[..., None], loss_of([loss], z_BND)

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        """See `Part`."""
        levels = torch.split(codes_BNS[..., 0], self.counts, 1)
        shaped = [level.reshape(-1, *shape) for level, shape in zip(levels, self.module.level_shapes, strict=True)]
        return self._flat(self.module.get_output_from_indices(shaped))

    def _flat(self, vector: Tensor) -> Tensor:
        return vector.flatten(2).transpose(1, 2) if self.module.channel_first else vector.flatten(1, -2)


class Chain(Part):
    """Sequential and EvoLFQ: a quantizer between other modules, which see one position at a time."""

    def __init__(self, module: Any, *inside: Part) -> None:
        super().__init__(module, *inside)
        (self.inner,) = inside
        links = _links(module)
        place = links.index(self.inner.module)
        self.before, self.after = nn.Sequential(*links[:place]), nn.Sequential(*links[place + 1 :])
        self.codes = self.inner.codes
        self.in_dim = self._in_dim()
        self.dim = self._dim()

    @staticmethod
    def modules_inside(module: Any) -> list[nn.Module]:
        """The one quantizer of the chain."""
        return [link for link in _links(module) if name_of(link)]

    def _in_dim(self) -> int:
        names = ("in_features", "in_channels", "num_features", "normalized_shape")
        found = (getattr(part, name) for part in self.before.modules() for name in names if hasattr(part, name))
        width = next(found, self.inner.in_dim)
        return int(width[-1] if isinstance(width, tuple) else width)

    @torch.no_grad()
    def _dim(self) -> int:
        probe = next((p for p in self.module.parameters()), torch.zeros(()))
        try:
            width = self.before(probe.new_zeros(1, 1, self.in_dim)).shape[-1]
            assert width == self.inner.in_dim
            return int(self.after(probe.new_zeros(1, 1, self.inner.dim)).shape[-1])
        except (RuntimeError, AssertionError, IndexError) as error:
            raise ValueError(
                f"{type(self.module).__name__}: the modules around its quantizer do not take [batch, position, "
                "channel]; convert the quantizer alone"
            ) from error

    def run(self, z_BND: Tensor, mask_BN: Tensor | None) -> Run:
        """See `Part`."""
        vector_BND, codes_BNS, loss = self.inner.run(self.before(z_BND), mask_BN)
        return self.after(vector_BND), codes_BNS, loss

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        """See `Part`."""
        vector_BND: Tensor = self.after(self.inner.vectors(codes_BNS))
        return vector_BND


def _links(module: Any) -> list[nn.Module]:
    return [module.encoder, module.lfq, module.decoder] if name_of(module) == "EvoLFQ" else list(module.fns)
