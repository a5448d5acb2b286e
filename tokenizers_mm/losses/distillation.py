"""How far features are from those of a teacher: each published form one function, means over all elements.

The teacher's features never get a gradient. Cosines are of float32 vectors whatever the autocast.

Shape letters: B batch, N positions, D channels (of a projection that has the teacher's width, and of the teacher).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.geometry import match_grid
from tokenizers_mm.semantics import Semantics

__all__ = [
    "cosine_distance",
    "feature_reconstruction",
    "marginal_cosine",
    "marginal_distance_matrix",
    "negative_log_cosine",
    "noised",
    "reals",
    "toklip",
]

Distance = Literal["mse", "smooth_l1", "cosine"]

_NORM_FLOOR = 1e-6  # a vector of zeros has no direction; its gradient is bounded by the inverse of this
_COSINE_FLOOR = 1e-4
_REALS_COSINE, _REALS_SMOOTH_L1 = 0.9, 0.1


def marginal_cosine(x_BND: Tensor, target_BND: Tensor, *, margin: float = 0.0) -> Tensor:
    """Mean of max(0, 1 - margin - cosine) over positions.

    VA-VAE, https://arxiv.org/abs/2501.01423: a position that is near enough is left alone.
    """
    return (1 - margin - _cosine(x_BND, target_BND)).relu().mean()


def marginal_distance_matrix(x_BND: Tensor, target_BND: Tensor, *, margin: float = 0.0) -> Tensor:
    """Mean of max(0, |cos(x_i, x_j) - cos(target_i, target_j)| - margin) over all pairs of positions of an image.

    VA-VAE, https://arxiv.org/abs/2501.01423. The widths of the two may differ; memory grows with B * N^2.
    """
    if x_BND.shape[:-1] != target_BND.shape[:-1]:
        raise ValueError(f"x_BND {tuple(x_BND.shape)} and target_BND {tuple(target_BND.shape)}: positions do not pair")
    x_BND, target_BND = _unit(x_BND), _unit(target_BND.detach())
    with torch.autocast(x_BND.device.type, enabled=False):
        difference_BNN = (x_BND @ x_BND.mT - target_BND @ target_BND.mT).abs()
    return (difference_BNN - margin).relu().mean()


def cosine_distance(x: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cosine over all vectors [..., D].

    REPA (https://arxiv.org/abs/2410.06940) on a backbone's hidden states, GigaTok (https://arxiv.org/abs/2504.08736)
    on a decoder's; both minimise -cosine, which has the same gradients.
    """
    return 1 - _cosine(x, target).mean()


def negative_log_cosine(x_BND: Tensor, target_BND: Tensor) -> Tensor:
    """Mean of -log(cosine) over positions, the cosine clamped to [0.0001, 0.9999].

    Show-o2, https://arxiv.org/abs/2506.15564. As published, a vector that points away from its target (cosine below
    the clamp) gets no gradient: start from features that are roughly right, or train with `cosine_distance` first.
    """
    return -_cosine(x_BND, target_BND).clamp(_COSINE_FLOOR, 1 - _COSINE_FLOOR).log().mean()


def feature_reconstruction(x: Tensor, target: Tensor, *, distance: Distance = "mse") -> Tensor:
    """Mean distance of predicted features [..., D] to the teacher's: mse, smooth_l1 (beta 1) or cosine.

    GigaTok, https://arxiv.org/abs/2504.08736.
    """
    if distance == "cosine":
        return cosine_distance(x, target)
    _check_pair(x, target)
    function = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}.get(distance)
    if function is None:
        raise ValueError(f"distance={distance!r}: expected mse, smooth_l1 or cosine")
    return function(x.float(), target.detach().float())


def reals(patch_BND: Tensor, pooled_BD: Tensor, target: Semantics) -> Tensor:
    """Mean over both levels, positions and whole image, of 0.9 * (1 - cosine) + 0.1 * smooth L1.

    ReaLS, https://arxiv.org/abs/2502.00359, maps latents to the teacher's features of patches and of the image. Its
    training code is not published; distances and weights here are those of AM-RADIO, https://arxiv.org/abs/2312.06709.
    The target's grid must be that of the latents already, see `match_grid`.
    """
    levels = [
        _REALS_COSINE * cosine_distance(x, wanted)
        + _REALS_SMOOTH_L1 * feature_reconstruction(x, wanted, distance="smooth_l1")
        for x, wanted in ((patch_BND, target.patch_BND), (pooled_BD, target.pooled_BD))
    ]
    return torch.stack(levels).mean()


def toklip(student: Semantics, teacher: Semantics, *, pooled: float = 1000.0, patch: float = 10.0) -> Tensor:
    """Weighted mean squared errors: of the pooled vectors, both at unit length, and of the vectors of positions.

    TokLIP, https://arxiv.org/abs/2505.05422, adds them to the contrastive loss (weight 1); 0 leaves a term out.
    The teacher's patches are brought to the student's grid.
    """
    total = torch.zeros((), device=student.pooled_BD.device)
    if pooled:
        unit_BD, wanted_BD = _unit(student.pooled_BD), _unit(teacher.pooled_BD)
        total = total + pooled * feature_reconstruction(unit_BD, wanted_BD)
    if patch:
        wanted_BND = match_grid(teacher.patch_BND, teacher.grid, student.grid)
        total = total + patch * feature_reconstruction(student.patch_BND, wanted_BND)
    return total


def noised(z_BND: Tensor, noise_BND: Tensor, t_B: Tensor) -> Tensor:
    """The point t * z + (1 - t) * noise of every image's path (t = 1 is clean), the noise as strong as its latents.

    Show-o2 (https://arxiv.org/abs/2506.15564) teaches latents at every noise level, because a generator's backbone
    reads noised ones. Latents in training have no unit variance yet: standard noise is multiplied by the root mean
    square of the image's own, so that t means the same at any scale and whatever else is in the batch.
    """
    size_B11 = z_BND.detach().float().square().mean((1, 2), keepdim=True).sqrt()
    return torch.lerp((size_B11 * noise_BND).to(z_BND.dtype), z_BND, t_B[:, None, None].to(z_BND.dtype))


def _cosine(x: Tensor, target: Tensor) -> Tensor:
    _check_pair(x, target)
    return (_unit(x) * _unit(target.detach())).sum(-1)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1, eps=_NORM_FLOOR)


def _check_pair(x: Tensor, target: Tensor) -> None:
    # Broadcasting would pair every position with one target and train on, silently.
    if x.shape != target.shape:
        raise ValueError(f"features {tuple(x.shape)} and target {tuple(target.shape)}: they must have one shape")
