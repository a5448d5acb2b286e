"""Vector quantization: Neural Discrete Representation Learning (https://arxiv.org/abs/1711.00937).

A vector becomes the index of its nearest codebook row: of least distance, or of least angle with both on the unit
sphere (ViT-VQGAN, https://arxiv.org/abs/2110.04627). The codebook follows the vectors, by exponential moving averages
of their sums and counts or by the gradient of |sg(z) - q|^2; the encoder follows the codebook by the commitment term.
Rows that few vectors choose are moved onto vectors of the current batch (Jukebox, https://arxiv.org/abs/2005.00341).
Counts start at zero, so the first training batch also initialises the whole codebook from data, by k-means if asked.

Several codes per position: `Product` of this. A narrow codebook: `Projected` around this.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Quantized, Quantizer
from quantizers.checks import check_codebook, check_not_negative
from quantizers.distributed import from_first_process, offset_and_total, sample_rows, segment_sums, sum_over_processes
from quantizers.kernels import nearest, sample_nearest
from quantizers.means import mean_square
from quantizers.straight_through import ESTIMATORS, Estimator, diveq, rotation, straight_through


class VQ(Quantizer):
    """Vector quantizer with one code per position.

    size         rows of the codebook, K
    dim          channels of a row
    metric       "euclidean", or "cosine": vectors and rows are normalised to unit length, and so is the output; or
                 "angle": the row of least angle is chosen but returned as it is (VAR with normalised search)
    codebook     "ema": a buffer that follows by moving averages; "gradient": a parameter, its loss term has weight 1
    decay        of the moving averages
    commitment   weight beta of |z - sg(q)|^2 in the loss
    revive       a row is dead when its average count falls below this share of the mean count; 0 never revives
    kmeans       iterations of k-means on the first training batch; 0 starts from vectors of it
    estimator    of the gradient: straight_through, rotation, or diveq (which trains a gradient codebook by itself)
    orthogonal   weight of the mean squared cosine between rows (https://arxiv.org/abs/2112.00384, equation 2)
    temperature  in training, draws codes with probability ~ exp(-|z - e|^2 / temperature)
                 (RQ-VAE, https://arxiv.org/abs/2203.01941); 0 takes the nearest
    """

    kind = "vq"

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        metric: Literal["euclidean", "cosine", "angle"] = "euclidean",
        codebook: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        commitment: float = 0.25,
        revive: float = 0.1,
        kmeans: int = 0,
        estimator: Estimator = "straight_through",
        orthogonal: float = 0.0,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        check_codebook(size, dim)
        if metric not in ("euclidean", "cosine", "angle") or codebook not in ("ema", "gradient"):
            raise ValueError(
                f"metric={metric!r}, codebook={codebook!r}: expected euclidean|cosine|angle and ema|gradient"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a number in [0, 1)")
        check_not_negative(commitment=commitment, revive=revive, kmeans=kmeans)
        check_not_negative(orthogonal=orthogonal, temperature=temperature)
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator={estimator!r}: expected one of {', '.join(ESTIMATORS)}")
        if codebook == "ema" and (estimator == "diveq" or orthogonal):
            raise ValueError(
                f"codebook='ema' with estimator={estimator!r}, orthogonal={orthogonal}: diveq and orthogonal "
                "work by gradients of the codebook; say codebook='gradient'"
            )
        self.size, self.metric, self.codebook, self.decay = size, metric, codebook, decay
        self.commitment, self.revive, self.kmeans = commitment, revive, kmeans
        self.estimator, self.orthogonal, self.temperature = estimator, orthogonal, temperature
        self.in_dim = self.dim = dim
        self.codes = (size,)
        rows_KD = torch.randn(size, dim)
        if codebook == "gradient":
            self.codebook_KD: Tensor = nn.Parameter(rows_KD)
        else:
            self.register_buffer("codebook_KD", rows_KD)
            self.register_buffer("sum_KD", torch.zeros(size, dim))
        self.register_buffer("count_K", torch.zeros(size))
        # A plain flag: `torch.compile` specialises on it, where a branch on a tensor would break the graph.
        self._untouched = True
        self.register_load_state_dict_post_hook(_note_history)  # type: ignore[no-untyped-call]

    sum_KD: Tensor
    count_K: Tensor

    def rows(self) -> Tensor:
        """Vectors [K, D] that the codes stand for, differentiable where the codebook learns by gradients."""
        rows_KD = self.codebook_KD
        if self.training and self.codebook == "gradient":
            # A second call may move rows before the first one's backward pass; autograd must not see that.
            rows_KD = rows_KD.clone()
        return self._normalised(rows_KD)

    def _normalised(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" else vectors

    def _search(self, flat_ND: Tensor, rows_KD: Tensor, *, temperature: float = 0.0) -> Tensor:
        metric: Literal["euclidean", "dot"] = "euclidean" if self.metric == "euclidean" else "dot"
        if self.metric == "angle":
            flat_ND, rows_KD = F.normalize(flat_ND, dim=-1), F.normalize(rows_KD, dim=-1)
        if temperature:
            return sample_nearest(flat_ND, rows_KD, temperature, metric=metric)
        return nearest(flat_ND, rows_KD, metric=metric)

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        z_BND = self._normalised(z_BND)
        flat_ND = z_BND.detach().reshape(-1, self.dim)
        mask_N = None if mask_BN is None else mask_BN.reshape(-1)
        offset, total = offset_and_total(len(flat_ND), flat_ND.device) if self.training else (0, 0)
        if total:
            self._prepare(flat_ND, mask_N, offset, total)
        rows_KD = self.rows()
        index_N = self._search(flat_ND, rows_KD, temperature=self.temperature if self.training else 0.0)
        out = self.chosen(z_BND, index_N, rows_KD, mask_BN)
        if total:
            self._follow(flat_ND, index_N, mask_N)
        return out

    def chosen(self, z_BND: Tensor, index_N: Tensor, rows_KD: Tensor, mask_BN: Tensor | None) -> Quantized:
        """Output for vectors (unit ones for cosine) whose rows were found already."""
        q_BND = F.embedding(index_N, rows_KD).view_as(z_BND)
        used = (self.count_K > 0.1 * self.count_K.mean()).float().mean()
        return Quantized(
            self._passed(z_BND, q_BND),
            index_N.view(*z_BND.shape[:2], 1),
            self._loss(z_BND, q_BND, rows_KD, mask_BN),
            {"codebook_in_use": used},
        )

    def _loss(self, z_BND: Tensor, q_BND: Tensor, rows_KD: Tensor, mask_BN: Tensor | None) -> Tensor:
        loss = self.commitment * mean_square(z_BND, q_BND.detach(), mask_BN)
        if self.codebook == "gradient" and self.estimator != "diveq":
            loss = loss + mean_square(q_BND, z_BND.detach(), mask_BN)
        if self.orthogonal and z_BND.numel():
            loss = loss + self.orthogonal * orthogonality(rows_KD)
        return loss

    def _passed(self, z_BND: Tensor, q_BND: Tensor) -> Tensor:
        if self.estimator == "diveq":
            return diveq(z_BND, q_BND) if self.training else straight_through(z_BND, q_BND)
        return rotation(z_BND, q_BND) if self.estimator == "rotation" else straight_through(z_BND, q_BND)

    def _encode(self, z_BND: Tensor) -> Tensor:
        flat_ND = self._normalised(z_BND).reshape(-1, self.dim)
        return self._search(flat_ND, self.rows()).view(*z_BND.shape[:2], 1)

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return self._normalised(F.embedding(codes_BNS.squeeze(-1), self.codebook_KD))

    @torch.no_grad()
    def _prepare(self, flat_ND: Tensor, mask_N: Tensor | None, offset: int, total: int) -> None:
        """Before the search: k-means on the first batch, afterwards dead rows onto vectors of this batch."""
        drawable = _drawable(flat_ND, mask_N, total)
        # While compiling, a tensor cannot be asked; then the first batch must hold a real vector.
        starts = self.kmeans and self._untouched and (torch.compiler.is_compiling() or bool(drawable > 0))
        if not starts and not self.revive:
            return
        candidate_KD = sample_rows(flat_ND, mask_N, self.size, offset, total)
        # A little noise keeps rows apart where the batch repeats itself: equal rows would make a code ambiguous.
        noise_KD = from_first_process(torch.randn_like(candidate_KD))
        candidate_KD = self._normalised(candidate_KD + 1e-3 * candidate_KD.std(correction=0) * noise_KD)
        if starts:
            self._untouched = False
            self._set_rows(*self._k_means(flat_ND, mask_N, candidate_KD), torch.full_like(self.count_K, True).bool())
        if self.revive:
            # They start with the mean count, so they get time to win some.
            mean_count = drawable / self.size
            dead_K = (self.count_K < self.revive * mean_count) & (drawable > 0)
            self._set_rows(candidate_KD, mean_count.expand(self.size), dead_K)

    def _set_rows(self, rows_KD: Tensor, count_K: Tensor, where_K: Tensor) -> None:
        self.codebook_KD.copy_(torch.where(where_K[:, None], rows_KD, self.codebook_KD))
        self.count_K.copy_(torch.where(where_K, count_K, self.count_K))
        if self.codebook == "ema":
            self.sum_KD.copy_(torch.where(where_K[:, None], rows_KD * count_K[:, None], self.sum_KD))

    def _k_means(self, flat_ND: Tensor, mask_N: Tensor | None, rows_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Lloyd's algorithm; returns rows and how many vectors each won in the last round."""
        count_K = torch.zeros_like(self.count_K)
        for _ in range(self.kmeans):
            sum_KD, count_K = segment_sums(flat_ND, self._search(flat_ND, rows_KD), mask_N, self.size)
            mean_KD = self._normalised(sum_KD / count_K.clamp(min=1)[:, None])
            rows_KD = torch.where(count_K[:, None] > 0, mean_KD, rows_KD)
        return rows_KD, count_K

    @torch.no_grad()
    def _follow(self, flat_ND: Tensor, index_N: Tensor, mask_N: Tensor | None) -> None:
        """Move the averages, then every row that was ever chosen, to the mean of its vectors."""
        sum_KD, count_K = segment_sums(flat_ND, index_N, mask_N, self.size)
        self.count_K.lerp_(count_K, 1 - self.decay)
        if self.codebook == "ema":
            self.sum_KD.lerp_(sum_KD, 1 - self.decay)
            mean_KD = self._normalised(self.sum_KD / self.count_K.clamp(min=1e-5)[:, None])
            self.codebook_KD.copy_(torch.where(self.count_K[:, None] > 1e-5, mean_KD, self.codebook_KD))


def orthogonality(rows_KD: Tensor) -> Tensor:
    """Mean squared cosine over all pairs of rows, less that of a row with itself: |R R^T - I|^2 / K^2, a scalar.

    |R R^T| = |R^T R|, so the matrix is D x D and not K x K.
    """
    unit_KD = F.normalize(rows_KD, dim=-1)
    size = len(unit_KD)
    return (unit_KD.T @ unit_KD).square().sum() / size**2 - 1 / size


def _drawable(flat_ND: Tensor, mask_N: Tensor | None, total: int) -> Tensor:
    """How many real vectors all processes have together."""
    if mask_N is None:
        return flat_ND.new_tensor(float(total))
    return sum_over_processes(mask_N.sum().float())


def _note_history(module: nn.Module, incompatible: object) -> None:
    """After loading: a codebook that has counts has met data, and k-means must not run again."""
    assert isinstance(module, VQ)
    module._untouched = not bool(module.count_K.any())
