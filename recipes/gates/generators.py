"""Generators on captioned shapes: what they write, what they draw, how varied it is, and whether it is copied.

Shape letters: B batch, N images, A attributes, C, H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import backbones
from backbones import Autoregressive, Flow
from recipes.gates.figures import Example, Figure, Findings, merge
from recipes.gates.shapes import CEILING_GATE, Evaluator, as_images, chance_range, control, save_stack
from recipes.inputs import trained_precision
from tokenizers_mm.data.sets import ATTRIBUTES, Shapes
from tokenizers_mm.measure import COPIES_ALLOWED, RATIO_RANGE, Memorisation, accuracy
from tokenizers_mm.measure.memorisation import memorisation
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.saving import fingerprint

__all__ = [
    "GENERATORS",
    "NAMES",
    "SAMPLING",
    "DrawnSamples",
    "draw_samples",
    "measure_captions",
    "measure_copies_control",
    "measure_samples",
]

# Generator -> tokenizer that its tokens belong to.
GENERATORS = {"ar": "fsq", "flow": "vae"}
NAMES = {"ar": "Token by token", "flow": "Flow"}
SAMPLING: dict[str, dict[str, Any]] = {
    "ar": {"guidance": 1.0, "temperature": 1.0},
    "flow": {"guidance": 1.25, "steps": 20, "solver": "euler"},
}
OF_CEILING, SHAPE_AIM = 0.9, 0.75
CAPTION_GATES = {"seen": 0.90, "heldout": 0.80}
DIVERSITY_RANGE = (0.5, 2.0)
_SEEDS = {"seen": (103, "train"), "heldout": (104, "heldout")}
_ALIKE_HALF, _ALIKE_IMAGES = 12, 16  # captions of each split, images of each caption
_SHOWN_HALF, _NULL_IMAGES, _CHUNK = 8, 256, 64
_CONTROL_RATIO = 0.1
_LONGEST = 1 + max(len(" ".join(words)) for words in product(*ATTRIBUTES.values()))


def unseen_shapes(count: int) -> dict[str, Shapes]:
    """Images nobody has seen: of combinations that were trained on, and of combinations held out."""
    return {name: Shapes(count, seed, split) for name, (seed, split) in _SEEDS.items()}  # type: ignore[arg-type]


@torch.no_grad()
def measure_captions(folder: Path, samples: int, progress: Callable[[str], None]) -> Findings:
    """Image -> caption by the autoregressive generator, greedily, on `samples` fresh images of each split."""
    progress(f"shapes_ar: writes captions of {samples} seen and {samples} held-out combinations")
    sampler, record = _load(folder, "ar"), "Captions written"
    if not isinstance(sampler.generator, Autoregressive):
        raise ValueError(
            f"{folder / 'shapes_ar'}: holds a {sampler.generator.kind} generator, which writes no captions"
        )
    figures, pictures = {}, []
    examples: list[Example] = []
    for split, shapes in unseen_shapes(samples).items():
        image_BCHW = as_images(shapes)
        written = sampler.generator.caption(sampler.codec.encode(image_BCHW), max_length=_LONGEST)
        right = [a == b for a, b in zip(written, shapes.captions, strict=True)]
        gate = CAPTION_GATES[split]
        figures[f"captions/{split}"] = Figure(value=_mean(right), unit="share", protocol=record, at_least=gate)
        if split == "seen":
            figures["control/captions/joint"] = _shuffled_captions(written, shapes.captions, record)
        rows = [Example(caption=a, read=b, right=a == b) for a, b in zip(shapes.captions, written, strict=True)]
        examples += rows[:_SHOWN_HALF]
        pictures.append(image_BCHW[:_SHOWN_HALF])
    save_stack(folder, "captions", torch.cat(pictures))
    protocol = {
        "generator": str(sampler.generator.config),
        "tokenizer": fingerprint(sampler.codec),
        "images": _images_words(samples),
        "match": "greedy caption equal to the true one, every byte",
        "control": "the same captions against those of other images",
    }
    return Findings(figures=figures, protocols={record: protocol}, examples={"captions": examples})


def _shuffled_captions(written: Sequence[str], captions: Sequence[str], record: str) -> Figure:
    other = np.random.default_rng(0).permutation(np.array(captions)).tolist()
    value = _mean([a == b for a, b in zip(written, other, strict=True)])
    return Figure(value=value, unit="share", protocol=record, at_most=chance_range(written, other)[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnSamples:
    """What a generator drew, float images in [-1, 1].

    halves   real images of the captions asked for: seen combinations, then held-out ones
    images   one for every caption of `halves`, in order
    alike    several for each of a few captions, one caption after the other
    null     without a caption
    """

    name: str
    protocol: Mapping[str, Any]
    halves: Mapping[str, Shapes]
    images: Tensor
    alike: Tensor
    null: Tensor


@torch.no_grad()
def draw_samples(folder: Path, name: str, samples: int, progress: Callable[[str], None]) -> DrawnSamples:
    """Let run shapes_NAME draw `samples` pictures, half of them of held-out combinations, and those of the controls."""
    progress(f"shapes_{name}: draws {samples} pictures, half of them of held-out combinations")
    sampler, halves = _load(folder, name), unseen_shapes(samples // 2)
    captions = [caption for shapes in halves.values() for caption in shapes.captions]
    few = [caption for shapes in halves.values() for caption in shapes.captions[:_ALIKE_HALF]]
    drawn = DrawnSamples(
        name=name,
        protocol=sampler.protocol() | {"captions": _images_words(samples // 2), "samples": f"{samples}, none left out"},
        halves=halves,
        images=sampler.draw(captions),
        alike=sampler.draw([caption for caption in few for _ in range(_alike(samples))], seed=2),
        null=sampler.draw([""] * min(samples, _NULL_IMAGES), seed=1, guidance=1.0),
    )
    save_stack(folder, f"{name}_samples", drawn.images[_shown(samples)])
    return drawn


@torch.no_grad()
def measure_samples(drawn: DrawnSamples, evaluator: Evaluator, ceiling: Findings) -> Findings:
    """Accuracy, controls, diversity and memorisation of what a generator drew.

    ceiling  what `measure_tokenizer` found about the tokenizer that decoded it
    """
    name, captions = drawn.name, [text for shapes in drawn.halves.values() for text in shapes.captions]
    target_NA = np.concatenate([shapes.attributes for shapes in drawn.halves.values()])
    read_NA = evaluator.judge.predict(drawn.images)
    record = f"Shapes drawn: {NAMES[name].lower()}"
    protocol = {
        **drawn.protocol,
        "target": f"{OF_CEILING:.0%} of the reconstruction ceiling, which counts as at least {CEILING_GATE:.0%}",
        "judge": evaluator.judge_words,
        "diversity": f"pixel variance among images of one caption, over real ones; {2 * _ALIKE_HALF} captions",
        "distance": "to the nearest training image in the judge's features: median, over that of fresh real images",
    }
    real_BCHW = torch.cat([as_images(shapes) for shapes in drawn.halves.values()])
    features = evaluator.judge.features
    neighbours = memorisation(features(drawn.images), evaluator.train_TF, features(real_BCHW))
    figures = {
        **_accuracies(name, read_NA, target_NA, ceiling, record),
        **_copy_figures(f"shapes/{name}", neighbours, record),
        f"shapes/{name}/diversity": _diversity(drawn, evaluator, record),
    }
    right_N = (read_NA == torch.from_numpy(target_NA)).all(1).tolist()
    shown = [Example(caption=captions[i], read=_words(read_NA[i]), right=right_N[i]) for i in _shown(len(captions))]
    null_target_NA = np.random.default_rng(1).permutation(target_NA)[: len(drawn.null)]
    null = {**drawn.protocol, "captions": "none: the null condition, guidance 1", "samples": len(drawn.null)}
    return merge(
        [
            Findings(figures=figures, protocols={record: protocol}, examples={f"{name}_samples": shown}),
            control(f"{name}_shuffled", read_NA, target_NA, protocol, shuffle=True),
            control(f"{name}_null", evaluator.judge.predict(drawn.null), null_target_NA, null),
        ]
    )


@torch.no_grad()
def measure_copies_control(evaluator: Evaluator) -> Findings:
    """The memorisation check must call training images copies when they are handed in as if generated."""
    record = "Control: training images as if drawn"
    test_TF = evaluator.judge.features(as_images(evaluator.test))
    found = memorisation(evaluator.train_TF[: len(test_TF)], evaluator.train_TF, test_TF)
    figures = {
        "control/copies/ratio": Figure(value=found.ratio, unit="", protocol=record, at_most=_CONTROL_RATIO),
        "control/copies/share": Figure(value=found.copies, unit="share", protocol=record, at_least=1.0),
    }
    protocol = {"distance": "to the nearest training image in the judge's features, over that of fresh real images"}
    return Findings(figures=figures, protocols={record: protocol})


def _copy_figures(path: str, found: Memorisation, record: str) -> dict[str, Figure]:
    """Ratio of median distances and share of copies, with their targets."""
    low, high = RATIO_RANGE
    ratio = Figure(value=found.ratio, unit="", protocol=record, at_least=low, at_most=high)
    copies = Figure(value=found.copies, unit="share", protocol=record, at_most=COPIES_ALLOWED)
    return {f"{path}/distance_ratio": ratio, f"{path}/copies": copies}


@dataclass(frozen=True)
class _Sampler:
    """A generator, and the tokenizer that turns its tokens into pixels."""

    name: str
    generator: Autoregressive | Flow
    codec: Autoencoder
    bfloat16: bool

    def draw(self, captions: Sequence[str], seed: int = 0, **options: Any) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], one a caption."""
        options, parts = SAMPLING[self.name] | options, []
        for start in range(0, len(captions), _CHUNK):  # larger batches fall out of the processor's caches
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):  # as it was trained
                tokens = self.generator.sample(captions[start : start + _CHUNK], seed=1000 * seed + start, **options)
            parts.append(self.codec.decode(tokens).clamp(-1, 1))
        return torch.cat(parts)

    def protocol(self) -> dict[str, Any]:
        """How it draws."""
        options = ", ".join(f"{option} {value}" for option, value in SAMPLING[self.name].items())
        return {
            "generator": str(self.generator.config),
            "tokenizer": fingerprint(self.codec),
            "sampling": f"{options}, fixed seeds",
            "arithmetic": "bfloat16 autocast; the tokenizer float32" if self.bfloat16 else "float32",
        }


def _load(folder: Path, name: str) -> _Sampler:
    codec = Autoencoder.from_pretrained(folder / f"shapes_{GENERATORS[name]}" / "tokenizer")
    run = folder / f"shapes_{name}"
    return _Sampler(name, backbones.load(run / "generator"), codec, trained_precision(run) == "bf16")


def _accuracies(
    name: str, read_NA: Tensor, target_NA: NDArray[np.int64], ceiling: Findings, record: str
) -> dict[str, Figure]:
    """Accuracy on all samples, with targets, and on each half."""
    figures, half = {}, len(read_NA) // 2
    rows = {"all": slice(None), "seen": slice(half), "heldout": slice(half, None)}
    for split, chosen in rows.items():
        found = accuracy(read_NA[chosen], torch.from_numpy(target_NA[chosen]), ATTRIBUTES)
        for attribute, value in found.items():
            best = max(CEILING_GATE, ceiling.value(f"shapes/{GENERATORS[name]}/{attribute}"))
            goal = None if attribute == "joint" else SHAPE_AIM if attribute == "shape" else OF_CEILING * best
            figures[f"shapes/{name}/{split}/{attribute}"] = Figure(
                value=value, unit="share", protocol=record, at_least=goal if split == "all" else None
            )
    return figures


def _diversity(drawn: DrawnSamples, evaluator: Evaluator, record: str) -> Figure:
    """Pixel variance among images of one caption, drawn over real, mean over captions."""
    labels = [int(label) for shapes in drawn.halves.values() for label in shapes.labels[:_ALIKE_HALF]]
    count = len(drawn.alike) // len(labels)
    rows = np.concatenate([np.flatnonzero(evaluator.real.labels == label)[:count] for label in labels])
    pairs = drawn.alike.numpy(), evaluator.real.images[rows] / 127.5 - 1
    ours, real = (images.reshape(len(labels), count, -1).var(1, ddof=1).mean() for images in pairs)
    low, high = DIVERSITY_RANGE
    return Figure(value=float(ours / real), unit="", protocol=record, at_least=low, at_most=high)


def _alike(samples: int) -> int:
    """Images of one caption."""
    return min(_ALIKE_IMAGES, samples // 2)


def _shown(samples: int) -> list[int]:
    """The first of each half: what the gallery shows."""
    half = samples // 2
    shown = min(_SHOWN_HALF, half)
    return [*range(shown), *range(half, half + shown)]


def _words(read_A: Tensor) -> str:
    return " ".join(values[i] for values, i in zip(ATTRIBUTES.values(), read_A.tolist(), strict=True))


def _images_words(count: int) -> str:
    return " and ".join(f"Shapes({count}, seed={seed}, split={split!r})" for seed, split in _SEEDS.values())


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
