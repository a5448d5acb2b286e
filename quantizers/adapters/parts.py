"""What each class of vector-quantize-pytorch 1.32 takes and gives, one small reader per class.

`run` gives vectors [B, N, D], codes [B, N, S] and a scalar loss; `vectors` the vectors of codes as `run` gives them in
evaluation. Modules run inside `as_sequences`.

Shape letters: B batch, N positions, S streams, D channels, H codebooks (heads), K rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.adapters.composites import Chain, Groups, Scales
from quantizers.adapters.part import Part, Run, loss_of
from quantizers.adapters.peer import PACKAGE, name_of


class _Table(Part):
    """VectorQuantize."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.in_dim = self.dim = module.dim
        self.codes = (module.codebook_size,) * module.heads

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        table_HKD = table_of(self.module)
        heads = [F.embedding(code_BN, table_HKD[h % len(table_HKD)]) for h, code_BN in enumerate(codes_BNS.unbind(-1))]
        vector_BND: Tensor = self.module.project_out(torch.cat(heads, -1))
        return vector_BND


def table_of(module: Any) -> Tensor:
    """Rows [H, K, D] among which a VectorQuantize searches: its codebook, through its bridge and its affine map."""
    codebook = module._codebook
    table_HKD: Tensor = codebook.embed if codebook.learnable_codebook else codebook.embed.detach()
    if codebook.vq_bridge is not None:
        table_HKD = codebook.vq_bridge(table_HKD)
    if codebook.affine_param:
        if codebook.batch_mean is None:
            raise ValueError("the affine map of this VectorQuantize has no statistics yet: run one batch first")
        ratio = (codebook.batch_variance.clamp(min=1e-5) / codebook.codebook_variance.clamp(min=1e-5)).sqrt()
        table_HKD = (table_HKD - codebook.codebook_mean) * ratio + codebook.batch_mean
    return table_HKD


class _ResidualTable(Part):
    """ResidualVQ."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        linear = isinstance(module.project_in, nn.Linear)
        self.in_dim = self.dim = module.project_in.in_features if linear else module.codebook_dim
        self.codes = tuple(module.codebook_sizes)

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        if self.module.implicit_neural_codebook:
            sum_BND = self.module.get_codes_from_indices(codes_BNS).sum(0)
        else:
            tables = (table_of(layer)[0] for layer in self.module.layers)
            levels = zip(codes_BNS.unbind(-1), tables, strict=True)
            sum_BND = torch.stack([F.embedding(code_BN, table_KD) for code_BN, table_KD in levels]).sum(0)
        vector_BND: Tensor = self.module.project_out(sum_BND)
        return vector_BND


class _Scalars(Part):
    """FSQ, FSP, LFQ, SimVQ: each reads its own indices rightly."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        books = getattr(module, "num_codebooks", 1)
        width = (
            module.code_transform(module.frozen_codebook[:1]).shape[-1] if name_of(module) == "SimVQ" else module.dim
        )
        levels = getattr(module, "_levels", None)
        size = module.codebook_size if levels is None else math.prod(levels.tolist())
        self.in_dim = self.dim = width
        self.codes = (size,) * books
        self.trailing = bool(getattr(module, "keep_num_codebooks_dim", False))

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        vector_BND: Tensor = self.module.indices_to_codes(codes_BNS if self.trailing else codes_BNS[..., 0])
        return vector_BND


class _ResidualScalars(Part):
    """ResidualFSQ, ResidualLFQ, ResidualSimVQ: the sum of what their layers read."""

    def __init__(self, module: Any, *inside: Part) -> None:
        super().__init__(module, *inside)
        linear = isinstance(getattr(module, "project_in", None), nn.Linear)
        self.in_dim = self.dim = module.project_in.in_features if linear else self.inside[0].dim
        self.codes = tuple(size for layer in self.inside for size in layer.codes)

    @staticmethod
    def modules_inside(module: Any) -> list[nn.Module]:
        """The levels."""
        return list(module.layers)

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        levels = [layer.vectors(codes_BNS[..., i : i + 1]) for i, layer in enumerate(self.inside)]
        if hasattr(self.module, "scales"):
            levels = [level_BND * scale_D for level_BND, scale_D in zip(levels, self.module.scales, strict=True)]
        vector_BND: Tensor = getattr(self.module, "project_out", nn.Identity())(torch.stack(levels).sum(0))
        return vector_BND


class _Latent(Part):
    """LatentQuantize, which is channel first always. Its own indices are right for evenly spaced values only."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.in_dim = self.dim = module.dim
        self.levels = module._levels.tolist()
        self.codes = (math.prod(self.levels),) * module.num_codebooks

    def run(self, z_BND: Tensor, mask_BN: Tensor | None) -> Run:
        vector_BDN, _, loss = self.module(z_BND.transpose(1, 2))
        inside_BNSD = self.module.project_in(z_BND).detach().unflatten(-1, (len(self.codes), len(self.levels)))
        values = zip(inside_BNSD.unbind(-1), self.module.values_per_latent, strict=True)
        digits = [(z_BNS[..., None] - value_L).abs().argmin(-1) for z_BNS, value_L in values]
        codes = [digit * math.prod(self.levels[:i]) for i, digit in enumerate(digits)]
        return vector_BDN.transpose(1, 2), torch.stack(codes).sum(0), loss_of([loss], z_BND)

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        digits = [codes_BNS // math.prod(self.levels[:i]) % level for i, level in enumerate(self.levels)]
        values = [value_L[digit] for digit, value_L in zip(digits, self.module.values_per_latent, strict=True)]
        vector_BND: Tensor = self.module.project_out(torch.stack(values, -1).flatten(-2))
        return vector_BND


class _RandomProjection(Part):
    """RandomProjectionQuantizer: gives indices only, so vectors are the rows they name, without a gradient."""

    def __init__(self, module: Any, *inside: Part) -> None:
        super().__init__(module, *inside)
        (self.table,) = self.inside
        self.in_dim, self.dim, self.codes = module.rand_projs.shape[1], self.table.dim, self.table.codes

    @staticmethod
    def modules_inside(module: Any) -> list[nn.Module]:
        """The codebook."""
        return [module.vq]

    def run(self, z_BND: Tensor, mask_BN: Tensor | None) -> Run:
        codes_BNS = self.streams(self.module(z_BND), z_BND)
        return self.vectors(codes_BNS).detach() + (0 * z_BND).sum(), codes_BNS, z_BND.new_zeros(())

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        return self.table.vectors(codes_BNS)


class _Bits(Part):
    """BinaryMapper: vectors are one-hot. It draws its bits in evaluation too; here it takes the likelier ones then."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.in_dim, self.dim, self.codes = module.bits, module.num_codes, (module.num_codes,)

    def run(self, z_BND: Tensor, mask_BN: Tensor | None) -> Run:
        training = self.module.training
        options = {"return_indices": True, "deterministic": not training, "straight_through": True}
        vector_BND, index_BN, loss = self.module(z_BND, **options)
        return vector_BND, self.streams(index_BN, z_BND), loss_of([loss], z_BND)

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        return F.one_hot(codes_BNS[..., 0], self.dim).float()


PARTS: dict[str, type[Part]] = {
    "VectorQuantize": _Table,
    "ResidualVQ": _ResidualTable,
    "GroupedResidualVQ": Groups,
    "FSQ": _Scalars,
    "FSP": _Scalars,
    "LFQ": _Scalars,
    "SimVQ": _Scalars,
    "LatentQuantize": _Latent,
    "ResidualFSQ": _ResidualScalars,
    "ResidualLFQ": _ResidualScalars,
    "ResidualSimVQ": _ResidualScalars,
    "GroupedResidualFSQ": Groups,
    "GroupedResidualLFQ": Groups,
    "RandomProjectionQuantizer": _RandomProjection,
    "BinaryMapper": _Bits,
    "HierarchicalVQ": Scales,
    "Sequential": Chain,
    "EvoLFQ": Chain,
}


def part_of(module: nn.Module) -> Part:
    """Reader of the module, after those of what is inside it; `ValueError` where its class is none of the package's."""
    if name_of(module) not in PARTS:
        cls = type(module)
        raise ValueError(f"module is a {cls.__module__}.{cls.__name__}: expected one of {PACKAGE}'s {', '.join(PARTS)}")
    reader = PARTS[name_of(module)]
    return reader(module, *map(part_of, reader.modules_inside(module)))
