"""Linear probe and k nearest neighbours: what the features of a tokenizer know of labels.

    linear_probe        L2-regularised multinomial logistic regression on standardised features
    nearest_neighbours  weighted vote of the k nearest by cosine (DINO, arXiv 2104.14294, section 4.1)

Shape letters: B batch, C image channels, H and W pixels, N training and Q test images, D features, k neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.api import Tokenizer
from tokenizers_mm.measure.classification import Classification
from tokenizers_mm.measure.logistic import fit_logistic, fit_logistic_path
from tokenizers_mm.semantics import semantics_of

__all__ = ["linear_probe", "nearest_neighbours", "pooled_features"]

PENALTIES = tuple(10.0**power for power in range(-5, 2))


@torch.no_grad()
def pooled_features(tokenizer: Tokenizer, images: Iterable[Tensor], device: torch.device | str = "cpu") -> Tensor:
    """Pooled features [N, D] float32 on the CPU of batches of images [B, C, H, W] in [-1, 1]."""
    parts = [semantics_of(tokenizer, image_BCHW.to(device)).pooled_BD.float().cpu() for image_BCHW in images]
    if not parts:
        raise ValueError("images is empty: there are no features of nothing")
    return torch.cat(parts)


def linear_probe(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_QD: Tensor,
    test_labels_Q: Tensor,
    *,
    names: Sequence[str] = (),
    l2: float | None = None,
    held_out: float = 0.2,
    seed: int = 0,
) -> Classification:
    """Train a linear classifier on frozen features and test it.

    names     of the classes, for messages
    l2        penalty; None: that of `PENALTIES` with the least cross-entropy on a `held_out` share of the training set
              (the same share of every class, drawn by `seed`), after which all of the training set is used

    Raises `ValueError` naming a class that is tested and not in the training set.
    """
    _check_pair(train_ND, train_labels_N, test_QD, test_labels_Q, names)
    classes, train_N = _shared_classes(train_labels_N, test_labels_Q, names)
    chosen = f"{held_out:.0%} of the training set held out" if l2 is None else "given"
    if l2 is None:
        l2 = _choose_penalty(train_ND, train_N, len(classes), held_out, seed)
    fit = fit_logistic(train_ND, train_N, len(classes), l2)
    predicted_Q = classes[fit.logits(test_QD).argmax(1)]
    method = f"linear probe, {len(train_ND)} training images, l2 {l2:g} ({chosen})"
    return Classification.of(
        method,
        predicted_Q,
        test_labels_Q,
        classes=len(classes),
        most_frequent=int(train_labels_N.bincount().argmax()),
    )


def nearest_neighbours(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_QD: Tensor,
    test_labels_Q: Tensor,
    *,
    names: Sequence[str] = (),
    k: int = 20,
    temperature: float = 0.07,
    block: int = 1024,
) -> Classification:
    """Vote of the k training images of largest cosine c, each with weight exp(c / temperature).

    Raises `ValueError` naming a class that is tested and not in the training set, or where k exceeds that set.
    """
    _check_pair(train_ND, train_labels_N, test_QD, test_labels_Q, names)
    classes, train_N = _shared_classes(train_labels_N, test_labels_Q, names)
    if not 1 <= k <= len(train_ND) or not temperature > 0:
        raise ValueError(
            f"k={k}, temperature={temperature}: expected k from 1 to {len(train_ND)}, the training images, and a "
            "positive temperature"
        )
    train_DN = F.normalize(train_ND.float(), dim=1).T
    votes = []
    for part_QD in torch.split(F.normalize(test_QD.float(), dim=1), block):
        cosine_Qk, index_Qk = (part_QD @ train_DN).topk(k, dim=1)
        weight_Qk = ((cosine_Qk - cosine_Qk[:, :1]) / temperature).exp()
        votes.append(weight_Qk.new_zeros(len(part_QD), len(classes)).scatter_add_(1, train_N[index_Qk], weight_Qk))
    predicted_Q = classes[torch.cat(votes).argmax(1)]
    method = f"{k} nearest neighbours by cosine, temperature {temperature:g}, {len(train_ND)} training images"
    return Classification.of(
        method,
        predicted_Q,
        test_labels_Q,
        classes=len(classes),
        most_frequent=int(train_labels_N.bincount().argmax()),
    )


def _choose_penalty(x_ND: Tensor, labels_N: Tensor, classes: int, held_out: float, seed: int) -> float:
    """The penalty that predicts the held-out share best; a class of few images keeps at least one for training."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: expected a share in (0, 1)")
    draw = torch.Generator().manual_seed(seed)
    out: list[Tensor] = []
    for label in range(classes):
        rows = (labels_N.cpu() == label).nonzero()[:, 0]
        out.append(rows[torch.randperm(len(rows), generator=draw)][: int(held_out * len(rows))])
    test = torch.cat(out).to(labels_N.device)
    if not len(test):
        raise ValueError(
            f"held_out={held_out} of {len(labels_N)} training images is none: give l2, or more images a class"
        )
    train = torch.ones_like(labels_N, dtype=torch.bool).index_fill(0, test, False)
    best, least, worse = PENALTIES[-1], math.inf, 0
    for fit in fit_logistic_path(x_ND[train], labels_N[train], classes, PENALTIES):
        loss = float(F.cross_entropy(fit.logits(x_ND[test]), labels_N[test]))
        best, least, worse = (fit.l2, loss, 0) if loss < least else (best, least, worse + 1)
        if worse == 2:  # weaker penalties cost the most time and only overfit more
            break
    return best


def _shared_classes(train_N: Tensor, test_Q: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The classes of the training set in order, and its labels as places in that order."""
    classes = torch.tensor(sorted(set(train_N.tolist())), device=train_N.device)
    missing = sorted(set(test_Q.tolist()) - set(classes.tolist()))
    if missing:
        named = ", ".join(f"{names[label]!r}" if names else str(label) for label in missing)
        raise ValueError(
            f"class {named}: in the test set and not in the training set; add training images of it, or leave it out "
            "of the test set"
        )
    if len(classes) < 2:
        raise ValueError(f"the training set has {len(classes)} class: telling classes apart needs at least 2")
    return classes, torch.searchsorted(classes, train_N)


def _check_pair(
    train_ND: Tensor, train_labels_N: Tensor, test_QD: Tensor, test_labels_Q: Tensor, names: Sequence[str]
) -> None:
    for part, x, labels in (("train", train_ND, train_labels_N), ("test", test_QD, test_labels_Q)):
        if x.ndim != 2 or labels.shape != x.shape[:1] or not len(x) or not x.is_floating_point():
            raise ValueError(
                f"{part}: features are {x.dtype} {tuple(x.shape)}, labels {tuple(labels.shape)}; expected float "
                "[N, D] and [N], N at least 1"
            )
        if labels.is_floating_point() or int(labels.min()) < 0 or (names and int(labels.max()) >= len(names)):
            raise ValueError(
                f"{part}: labels are {labels.dtype} up to {int(labels.max())}; expected integers from 0"
                + (f" below {len(names)}, the number of names" if names else "")
            )
    if train_ND.shape[1] != test_QD.shape[1]:
        raise ValueError(f"train features have {train_ND.shape[1]} channels, test features {test_QD.shape[1]}")
