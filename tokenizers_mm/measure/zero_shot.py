"""Zero-shot classification: an image gets the class whose text is nearest.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020, section 3.1:
prompts are embedded, normalised and averaged for every class, and compared with pooled image features by cosine.

Shape letters: Q images, K classes, T templates, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.api import Tokenizer
from tokenizers_mm.measure.classification import Classification

__all__ = ["TEMPLATES", "class_texts", "zero_shot"]

TEMPLATES = ("{}", "a photo of a {}.", "an image of a {}.", "a picture of the {}.", "a drawing of a {}.")


@torch.no_grad()
def class_texts(tokenizer: Tokenizer | Any, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Text features [K, D] of unit length, one a class: the mean over prompts of unit-length features.

    Raises `ValueError` where the tokenizer has no text tower, or a template has no place for the name.
    """
    if not hasattr(tokenizer, "text_features"):
        raise ValueError(
            f"{type(tokenizer).__name__} has no text_features: zero-shot classification needs a tokenizer with a text "
            "tower (an open_clip model, or one trained with a semantic head on captions)"
        )
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates or not classes:
        raise ValueError(f"templates={list(templates)}, {len(classes)} classes: every template needs a {{}}")
    prompts = [template.format(name) for name in classes for template in templates]
    text_KTD = F.normalize(tokenizer.text_features(prompts).float(), dim=1).reshape(len(classes), len(templates), -1)
    return F.normalize(text_KTD.mean(1), dim=1)


def zero_shot(pooled_QD: Tensor, labels_Q: Tensor, text_KD: Tensor) -> Classification:
    """Each image gets the class whose text features are nearest by cosine; nothing is trained.

    pooled_QD  pooled image features; text_KD  what `class_texts` returns, in the order of the labels
    """
    if pooled_QD.ndim != 2 or text_KD.ndim != 2 or pooled_QD.shape[1] != text_KD.shape[1]:
        raise ValueError(
            f"pooled_QD {tuple(pooled_QD.shape)} and text_KD {tuple(text_KD.shape)}: expected [Q, D] and [K, D], in "
            "one space"
        )
    if len(labels_Q) != len(pooled_QD) or not len(labels_Q) or not 0 <= int(labels_Q.min()) <= int(labels_Q.max()):
        raise ValueError(f"{len(labels_Q)} labels for {len(pooled_QD)} images: expected one for each, at least 0")
    if int(labels_Q.max()) >= len(text_KD):
        raise ValueError(f"label {int(labels_Q.max())} has no text: text_KD has {len(text_KD)} rows")
    cosine_QK = F.normalize(pooled_QD.float(), dim=1) @ F.normalize(text_KD.to(pooled_QD).float(), dim=1).T
    method = f"zero-shot, {len(text_KD)} classes"
    return Classification.of(
        method,
        cosine_QK.argmax(1),
        labels_Q,
        classes=len(text_KD),
        most_frequent=int(labels_Q.bincount().argmax()),
    )
