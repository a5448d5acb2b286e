"""The images of the alignment study, and what is measured of its tokenizers and generators.

Fashion-MNIST: tokenizers and generators see the first images of the training set, the probe is fitted on other ones of
it, and everything is measured on the published test set. Weights and losses were chosen on images at the end of the
training set (`part="validation"`), which nothing here reads otherwise.

Shape letters: N images, B batch, C channels, H and W pixels, D features.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from tokenizers_mm.data import Labelled, Preprocess
from tokenizers_mm.data.sets import fashion_mnist
from tokenizers_mm.measure import (
    AttributeJudge,
    FeatureStatistics,
    Protocol,
    batches_of,
    evaluate,
    extractor,
    frechet_distance,
    linear_probe,
    pooled_features,
    train_judge,
)
from tokenizers_mm.store import Row, StoreWriter

TEACHER_SIDE = 64
_SIDE, _BATCH = 32, 100
_VALIDATION = 50_000
_JUDGED = 20_000, 50_000


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is measured on: `probe` fits the probe; `test` is read by it, reconstructed, and what samples should be."""

    probe: Labelled
    test: Labelled

    @classmethod
    def read(cls, *, trained: int, probe: int = 6000, test: int = 4000, part: str = "test") -> "Images":
        """`trained` images at the front are left to the tokenizers."""
        train = fashion_mnist("train", _SIDE)
        held_out = fashion_mnist("test", _SIDE) if part == "test" else train.subset(range(_VALIDATION, len(train)))
        return cls(probe=train.subset(range(trained, trained + probe)), test=held_out.subset(range(test)))


def fashion_judge(*, steps: int = 1500) -> AttributeJudge:
    """A classifier of real images that no tokenizer, generator or probe has seen."""
    data = fashion_mnist("train", _SIDE).subset(range(*_JUDGED))
    return train_judge(data.images_NHWC, data.labels_N[:, None], {"class": len(data.classes)}, steps=steps)


@dataclass
class Distances:
    """Frechet distances to the test images by three networks, and the share of images that show the wanted class.

    FD-judge   features of `judge`, a classifier of real images of this kind: what they show
    FD-Lite0   features of Lite0, which is also the teacher of the aligned tokenizers: on 32 pixels, mostly how sharp
    FD-pixels  means of 4x4 pixels, which have nothing to do with any network: where things are
    """

    test: Labelled
    judge: AttributeJudge
    real: dict = field(default_factory=dict)

    def __post_init__(self):
        self.network = extractor("lite0", input_size=TEACHER_SIDE)
        self.real, self.judge_accuracy = self._measured(batches_of(self.test, _BATCH), self.test.labels_N)

    def of(self, batches, label_N):
        """Distances of these images to the real ones, and the judge's accuracy (percent) on the labels they go by."""
        statistics, accuracy = self._measured(batches, label_N)
        found = {name: frechet_distance(made, self.real[name]) for name, made in statistics.items()}
        return found | {"judged": accuracy}

    def _measured(self, batches, label_N):
        parts, predicted = {"FD-judge": [], "FD-Lite0": [], "FD-pixels": []}, []
        for image_BCHW in batches:
            levels_BCHW = ((image_BCHW.clamp(-1, 1) + 1) * 127.5).round()
            parts["FD-judge"].append(self.judge.features(levels_BCHW / 127.5 - 1))
            parts["FD-Lite0"].append(self.network(levels_BCHW))
            parts["FD-pixels"].append(F.avg_pool2d(levels_BCHW[:, :1] / 255, 4).flatten(1))
            predicted.append(self.judge.predict(levels_BCHW / 127.5 - 1)[:, 0])
        right_N = torch.cat(predicted) == torch.as_tensor(label_N)
        statistics = {name: FeatureStatistics.of(torch.cat(rows)) for name, rows in parts.items()}
        return statistics, 100 * right_N.double().mean().item()


def tokenizer_figures(tokenizer, images):
    """Probe accuracy on mean-pooled latents, PSNR and KL, plain numbers."""
    probe = linear_probe(
        pooled_features(tokenizer, batches_of(images.probe, _BATCH)),
        torch.from_numpy(images.probe.labels_N),
        pooled_features(tokenizer, batches_of(images.test, _BATCH)),
        torch.from_numpy(images.test.labels_N),
        names=images.probe.classes,
    )
    protocol = Protocol(reference="fashion-mnist", ema=True)
    result = evaluate(tokenizer, batches_of(images.test, _BATCH), protocol=protocol)
    return {
        "probe": 100 * probe.accuracy,
        "chance": 100 * probe.chance,
        "majority": 100 * probe.majority,
        "probe_method": probe.method,
        "psnr": result["PSNR"].value,
        "ssim": result["SSIM"].value,
        "kl_bits_per_pixel": result["KL per pixel"].value,
    }


@torch.no_grad()
def reconstructions(tokenizer, data):
    """Batches of what the tokenizer makes of images: the best that its generators can do."""
    for image_BCHW in batches_of(data, _BATCH):
        yield tokenizer.decode(tokenizer.encode(image_BCHW))


def classes_in_turn(count, classes):
    """The classes [N] of samples, as many of each."""
    return np.arange(count) % classes


@torch.no_grad()
def samples(generator, tokenizer, label_N, *, seed=0):
    """Batches of drawn images of these classes."""
    for number, label_B in enumerate(torch.as_tensor(label_N).split(_BATCH)):
        tokens = generator.sample(label_B, seed=1000 * seed + number)
        yield tokenizer.decode(tokens)


def write_tokens(tokenizer, fingerprint, data, folder):
    """A token store of these images with their labels."""
    with StoreWriter(folder, tokenizer.spec, fingerprint, Preprocess(_SIDE)) as writer:
        for number, start in enumerate(range(0, len(data), 1000)):
            part = data.subset(range(start, min(start + 1000, len(data))))
            tokens = tokenizer.encode(part.tensor())
            rows = [Row(key, label=int(label)) for key, label in zip(part.keys, part.labels_N, strict=True)]
            writer.write_shard(number, tokens, rows)
