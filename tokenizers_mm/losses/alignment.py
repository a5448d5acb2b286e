"""Teaches latents what a frozen network knows about the image: a trained projection of them, and a distance.

What the network gives is computed elsewhere (and cached, where images do not change): here it is a target.

Shape letters: B batch, N positions, D channels of a latent, E channels of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokenizers_mm.geometry import Grid, match_grid
from tokenizers_mm.losses.distillation import (
    Distance,
    cosine_distance,
    feature_reconstruction,
    marginal_cosine,
    marginal_distance_matrix,
    negative_log_cosine,
    noised,
    reals,
)
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.towers import TowerConfig

__all__ = ["Alignment", "AlignmentConfig", "projector"]


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """How latents are aligned with a teacher.

    weight           of the term; with `adaptive`, relative to the gradient of the reconstruction at the latents
    teacher          the frozen network
    loss             va_vae (cosine and distance matrix of positions, with margins), cosine, negative_log_cosine,
                     features (predict them), reals (patches and the pooled vector), pooled (1 - cosine of the mean
                     latent and the pooled vector: the only one for tokens that have no place in the image)
    margins          of va_vae: of the distance matrix, of the cosine; published: 0, 0, and .25, .5 in the last stage
    distance         of features: mse, smooth_l1 or cosine
    projector        from latents to the teacher's width: linear without bias (VA-VAE), or an MLP of three layers with
                     SiLU, `projector_width` wide inside (REPA, GigaTok)
    noised           share of the training images whose latents are noised before they are projected (Show-o2)
    adaptive         scale the term so that its gradient is as large as that of the reconstruction (VA-VAE)
    max_weight       most that `adaptive` multiplies by
    """

    teacher: TowerConfig
    weight: float = 1.0
    loss: Literal["va_vae", "cosine", "negative_log_cosine", "features", "reals", "pooled"] = "va_vae"
    margins: tuple[float, float] = (0.0, 0.0)
    distance: Distance = "mse"
    projector: Literal["linear", "mlp"] = "linear"
    projector_width: int = 512
    noised: float = 0.0
    adaptive: bool = False
    max_weight: float = 1e4

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing, and margins where no loss reads them."""
        if not self.weight >= 0 or not self.max_weight > 0:
            raise ValueError(f"weight={self.weight}, max_weight={self.max_weight}: expected >= 0 and > 0")
        if not (0 <= self.margins[0] <= 2 and 0 <= self.margins[1] <= 2):
            raise ValueError(f"margins={self.margins}: differences of cosines lie in [0, 2]")
        if any(self.margins) and self.loss != "va_vae":
            raise ValueError(f"margins={self.margins}: loss {self.loss} has none; leave them out, or say va_vae")
        if self.projector_width < 1:
            raise ValueError(f"projector_width={self.projector_width}: expected at least 1")
        if not 0 <= self.noised <= 1:
            raise ValueError(f"noised={self.noised}: expected a share in [0, 1]")


class Alignment(nn.Module):
    """Unweighted distance of latents [B, N, dim] to what a teacher says of the same images; the projection is trained.

    dim         channels of the latents
    patch_dim   of the teacher's vectors of positions; pooled_dim  of those of images (default: patch_dim)
    """

    def __init__(self, config: AlignmentConfig, dim: int, patch_dim: int, pooled_dim: int | None = None) -> None:
        super().__init__()
        self.config = config
        kind, width = config.projector, config.projector_width
        if config.loss != "pooled":
            self.patch = projector(dim, patch_dim, kind=kind, width=width)
        if config.loss in ("pooled", "reals"):
            self.pooled = projector(dim, pooled_dim or patch_dim, kind=kind, width=width)

    def forward(self, z_BND: Tensor, grid: Grid, target: Semantics) -> Tensor:
        """A scalar; gradients reach the latents and the projection, not the target.

        grid  of the latents: (rows, columns), or (n,) of a sequence. A target of another grid is interpolated to it,
              see `match_grid`. Raises `ValueError` where it cannot be, and for targets of other images.
        """
        if len(target) != len(z_BND):
            raise ValueError(f"target: features of {len(target)} images for {len(z_BND)}; they must pair one to one")
        with torch.autocast(z_BND.device.type, enabled=False):  # a teacher's features span too much for bfloat16
            z_BND = self._noised(z_BND.float())
            if self.config.loss == "pooled":
                return cosine_distance(self.pooled(z_BND.mean(1)), target.pooled_BD)
            wanted_BNE = match_grid(target.patch_BND.detach().float(), target.grid, grid)
            patch_BNE = self.patch(z_BND)
            if self.config.loss == "reals":
                return reals(
                    patch_BNE,
                    self.pooled(z_BND.mean(1)),
                    Semantics(wanted_BNE, target.pooled_BD, (wanted_BNE.shape[1],)),
                )
            return self._of_positions(patch_BNE, wanted_BNE)

    def _of_positions(self, patch_BNE: Tensor, wanted_BNE: Tensor) -> Tensor:
        config = self.config
        if config.loss == "va_vae":
            matrix, cosine = config.margins
            return marginal_distance_matrix(patch_BNE, wanted_BNE, margin=matrix) + marginal_cosine(
                patch_BNE, wanted_BNE, margin=cosine
            )
        if config.loss == "features":
            return feature_reconstruction(patch_BNE, wanted_BNE, distance=config.distance)
        return {"cosine": cosine_distance, "negative_log_cosine": negative_log_cosine}[config.loss](
            patch_BNE, wanted_BNE
        )

    def _noised(self, z_BND: Tensor) -> Tensor:
        if not (self.training and self.config.noised):
            return z_BND
        t_B = torch.rand(len(z_BND), device=z_BND.device)
        clean_B = torch.rand(len(z_BND), device=z_BND.device) >= self.config.noised
        return noised(z_BND, torch.randn_like(z_BND), torch.where(clean_B, 1.0, t_B))


def projector(dim: int, out_dim: int, *, kind: Literal["linear", "mlp"] = "mlp", width: int = 512) -> nn.Module:
    """What brings features to a teacher's width: see `AlignmentConfig.projector`."""
    if kind == "linear":
        return nn.Linear(dim, out_dim, bias=False)
    return nn.Sequential(
        nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out_dim)
    )
