"""Images and their captions: pairs are pulled together, everything else in the batch is pushed apart.

InfoNCE: CLIP, https://arxiv.org/abs/2103.00020. Pairwise sigmoid: SigLIP, https://arxiv.org/abs/2303.15343. UniTok
(https://arxiv.org/abs/2502.20321) and QLIP (https://arxiv.org/abs/2502.05178) train them on pooled quantised tokens.

The batch is that of all processes: each compares its own images and captions with everybody's, and the mean of their
losses (and, as DistributedDataParallel averages, of their gradients) is exactly that of one process with the whole
batch. All processes must bring equally many. Micro-batches of an accumulated step, in contrast, do not see each other:
there are fewer negatives, as there always are with a smaller batch.

Shape letters: B images of this process, A images of all, D channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from quantizers.distributed import processes, sum_over_processes

__all__ = ["caption_ids", "contrastive", "info_nce", "pairwise_sigmoid"]

Contrast = Literal["info_nce", "sigmoid"]


def contrastive(
    contrast: Contrast,
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    captions: Sequence[str] | None = None,
) -> Tensor:
    """The loss named `contrast`; `bias` is that of the sigmoid loss, a softmax has none.

    captions  where given, images whose captions are equal count as positives of each other's captions

    Raises `ValueError` for an unknown name and for captions that do not pair with the images.
    """
    if captions is not None and len(captions) != len(image_BD):
        raise ValueError(f"captions: {len(captions)} for {len(image_BD)} images; they must pair one to one")
    ids_B = None if captions is None else caption_ids(captions).to(image_BD.device)
    if contrast == "info_nce":
        return info_nce(image_BD, text_BD, scale=scale, ids_B=ids_B)
    if contrast != "sigmoid":
        raise ValueError(f"contrast={contrast!r}: expected info_nce or sigmoid")
    return pairwise_sigmoid(image_BD, text_BD, scale=scale, bias=0.0 if bias is None else bias, ids_B=ids_B)


def info_nce(image_BD: Tensor, text_BD: Tensor, *, scale: Tensor | float, ids_B: Tensor | None = None) -> Tensor:
    """Cross-entropy of finding an image's caption among all captions, and a caption's image; the mean of both.

    image_BD, text_BD  row i of one belongs to row i of the other; any length, cosines are taken
    scale              what cosines are multiplied by, the inverse temperature
    ids_B              int64, equal where captions are equal; the target is then spread evenly over all equal ones, as
                       in UniCL (https://arxiv.org/abs/2204.03610). Without it an equal caption counts as wrong, which
                       changes nothing here as long as equal captions have equal vectors, but does in the sigmoid loss.
    """
    image_BD, text_BD = _checked(image_BD, text_BD, ids_B)
    image_AD, text_AD = _of_all(image_BD), _of_all(text_BD)
    target_BA = _positives(image_BD, ids_B).float()
    target_BA = target_BA / target_BA.sum(1, keepdim=True)
    with torch.autocast(image_BD.device.type, enabled=False):
        # Equality is symmetric, so the rows of captions have the targets of the rows of images.
        of_image = F.cross_entropy(scale * image_BD @ text_AD.T, target_BA)
        of_text = F.cross_entropy(scale * text_BD @ image_AD.T, target_BA)
    return (of_image + of_text) / 2


def pairwise_sigmoid(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    ids_B: Tensor | None = None,
) -> Tensor:
    """-log sigmoid(+-(scale * cosine + bias)) of every image with every caption, + for pairs; sum over all / images.

    The arguments are those of `info_nce`; equal captions have +. SigLIP divides by the number of images, not of pairs.
    """
    image_BD, text_BD = _checked(image_BD, text_BD, ids_B)
    text_AD = _of_all(text_BD)
    with torch.autocast(image_BD.device.type, enabled=False):
        logits_BA = scale * image_BD @ text_AD.T + bias
    sign_BA = 2 * _positives(image_BD, ids_B).float() - 1
    return -F.logsigmoid(sign_BA * logits_BA).sum() / len(image_BD)


def caption_ids(captions: Sequence[str]) -> Tensor:
    """Int64 [B], equal for equal captions (63 bits of BLAKE2), the same in every process."""
    digests = (hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


def _checked(image_BD: Tensor, text_BD: Tensor, ids_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Unit vectors in float32; `ValueError` where images, captions and ids do not pair."""
    if image_BD.ndim != 2 or image_BD.shape != text_BD.shape or not len(image_BD):
        raise ValueError(
            f"image_BD {tuple(image_BD.shape)} and text_BD {tuple(text_BD.shape)}: expected one caption for "
            "every image, at least one, and one width"
        )
    if ids_B is not None and (ids_B.shape != image_BD.shape[:1] or ids_B.dtype != torch.int64):
        raise ValueError(f"ids_B is {ids_B.dtype} {tuple(ids_B.shape)}: expected int64 ({len(image_BD)},)")
    return F.normalize(image_BD.float(), dim=-1, eps=1e-6), F.normalize(text_BD.float(), dim=-1, eps=1e-6)


def _positives(image_BD: Tensor, ids_B: Tensor | None) -> Tensor:
    """Bool [B, A]: which captions (or, as this is symmetric, images) of all processes go with those of this one."""
    batch, first = len(image_BD), _rank() * len(image_BD)
    if ids_B is not None:
        return ids_B[:, None] == _gathered(ids_B)[None]
    index_A = torch.arange(batch * processes(), device=image_BD.device)
    return index_A[first : first + batch, None] == index_A[None]


def _of_all(x_BD: Tensor) -> Tensor:
    """Rows [A, D] of all processes in the order of their ranks; gradients go back to the process of each row."""
    if processes() == 1:
        return x_BD
    rows: Tensor = _Gather.apply(x_BD)
    return rows


def _gathered(x_B: Tensor) -> Tensor:
    if processes() == 1:
        return x_B
    parts = [torch.empty_like(x_B) for _ in range(processes())]
    dist.all_gather(parts, x_B.contiguous())
    return torch.cat(parts)


def _rank() -> int:
    return dist.get_rank() if processes() > 1 else 0


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every process's loss says about this process's rows.

    Public training code often gathers without a gradient, which trains each side against constants and loses half.
    """

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        ctx.batch = len(x_BD)
        return _gathered(x_BD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor]:
        total_AD = sum_over_processes(gradients[0].clone())
        first = _rank() * ctx.batch
        return (total_AD[first : first + ctx.batch],)
