"""What is measured of a tokenizer in the study of text contrast and fused halves, always on held-out images.

Pooled tokens are the mean over positions of the vectors that the (quantised) tokens stand for; a probe reads classes
off them. Emoji: five folds of the held-out families; five folds of all families, where the tokenizer's text contrast
has seen the names (never the groups) of five in six; a classifier of the training images tried on the held-out ones.
Fashion-MNIST: a classifier of images at the end of the training set, tried on test images.

Shape letters: N images, D features, B batch, C channels, H and W pixels.
"""

from functools import lru_cache

import numpy as np
import torch

from tokenizers_mm.data import Labelled
from tokenizers_mm.data.sets import fashion_mnist
from tokenizers_mm.data.sets.emoji import emoji
from tokenizers_mm.measure import CodeStatistics, class_texts, cross_validate, linear_probe, psnr
from tokenizers_mm.measure.zero_shot import zero_shot

SIDE, FOLDS = 32, 5
_BATCH = 128
_PROBE_FROM, _PROBE_IMAGES, _TEST_IMAGES = 50_000, 2000, 1500


@lru_cache(maxsize=4)
def images_of(kind, few=False):
    """(images that the probe is fitted on, held-out images) of a kind of data; `few` to try the program out."""
    if kind == "emoji":
        train, test = emoji("train", SIDE), emoji("test", SIDE)
        return (train.subset(range(0, len(train), 10)), test) if few else (train, test)
    probe, test = (60, 60) if few else (_PROBE_IMAGES, _TEST_IMAGES)
    train = fashion_mnist("train", SIDE).subset(range(_PROBE_FROM, _PROBE_FROM + probe))
    return train, fashion_mnist("test", SIDE).subset(range(test))


def figures(tokenizer, kind, *, draws=True, few=False, fitted=None):
    """Plain numbers of one tokenizer: PSNR where it was trained for it (`draws`), rate, usage, probes in percent.

    fitted  features that the probe is fitted on, where a half of this tokenizer has given them already
    """
    train, test = images_of(kind, few)
    held_out, found = _read(tokenizer, test, draws=draws)
    fitted = fitted or fitting_features(tokenizer, kind, few)
    found["bits_per_image"] = bits_per_image(tokenizer)
    for name in fitted:
        found |= _probes(name, fitted[name], train, held_out[name], test)
        if kind == "emoji":
            both = torch.cat([fitted[name], held_out[name]])
            found[f"{name}_folds"] = _crossed(held_out[name], test)
            found[f"{name}_all"] = _crossed(both, together(train, test))
    text = getattr(getattr(tokenizer, "semantic", None), "text", None)
    if text is not None:
        found["zero_shot"] = _percent(zero_shot(held_out["head"], _labels(test), class_texts(tokenizer, test.classes)))
    return found


def fitting_features(tokenizer, kind, few=False):
    """Features by name that the probe is fitted on."""
    return _read(tokenizer, images_of(kind, few)[0], draws=False)[0]


def bits_per_image(tokenizer):
    """Bits that the codes of one image can hold; a sequence of two halves knows which half a position belongs to."""
    if hasattr(tokenizer, "perceptual_spec"):
        return tokenizer.semantic_spec.bits_per_image + tokenizer.perceptual_spec.bits_per_image
    return tokenizer.spec.bits_per_image


@torch.no_grad()
def _read(tokenizer, data, *, draws):
    """Features of every image by name (pooled tokens, and what a semantic head reads off them), and figures."""
    parts, statistics, psnrs = {}, CodeStatistics(tokenizer.spec), []
    for start in range(0, len(data), _BATCH):
        image_BCHW = data.tensor(slice(start, start + _BATCH))
        tokens = tokenizer.encode(image_BCHW)
        statistics.update(tokens)
        if draws:
            psnrs.append(psnr(tokenizer.decode(tokens), image_BCHW))
        half = tokenizer
        if hasattr(tokenizer, "halves"):
            tokens, half = tokenizer.halves(tokens)[0], tokenizer.semantic
        parts.setdefault("tokens", []).append(half.embed(tokens).mean(1))
        if half.semantic is not None:
            parts.setdefault("head", []).append(half.token_semantics(tokens).pooled_BD)
    found = {"usage": min(statistics.result().usage)}
    if draws:
        found["psnr"] = float(torch.cat(psnrs).mean())
    return {name: torch.cat(rows).float() for name, rows in parts.items()}, found


def _probes(name, fitted_ND, train, held_out_ND, test):
    classified = linear_probe(fitted_ND, _labels(train), held_out_ND, _labels(test), names=test.classes)
    return {f"{name}_probe": _percent(classified), "majority": 100 * classified.majority}


def _crossed(features_ND, data):
    return _percent(cross_validate(linear_probe, features_ND, _labels(data), data.folds(FOLDS), names=data.classes))


def together(first, second):
    """Two parts of one data set as one, families as they are."""
    return Labelled(
        images_NHWC=np.concatenate([first.images_NHWC, second.images_NHWC]),
        captions=first.captions + second.captions,
        labels_N=np.concatenate([first.labels_N, second.labels_N]),
        classes=first.classes,
        keys=first.keys + second.keys,
        families_N=np.concatenate([first.families_N, second.families_N]),
    )


def _labels(data):
    return torch.from_numpy(data.labels_N.copy())


def _percent(classification):
    return 100 * classification.accuracy
