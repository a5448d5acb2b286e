"""What generators draw on captioned shapes: whether it is what was asked for, how varied, and whether it is copied.

Shape letters: B batch, N images, A attributes, C, H, W image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.gates.figures import Example, Figure, Findings, merge
from recipes.gates.samples import ALIKE_HALF, GENERATORS, DrawnSamples, shown
from recipes.gates.shapes import CEILING_GATE, Evaluator, as_images, control
from tokenizers_mm.data.sets import ATTRIBUTES
from tokenizers_mm.measure import COPIES_ALLOWED, RATIO_RANGE, Memorisation, accuracy
from tokenizers_mm.measure.memorisation import memorisation

__all__ = ["GENERATOR_TITLES", "measure_copies_control", "measure_samples"]

GENERATOR_TITLES = {"ar": "Token by token", "flow": "Flow"}
OF_CEILING, SHAPE_AIM = 0.9, 0.75
DIVERSITY_RANGE = (0.5, 2.0)
_CONTROL_RATIO = 0.1


@torch.no_grad()
def measure_samples(drawn: DrawnSamples, evaluator: Evaluator, ceiling: Findings) -> Findings:
    """Accuracy, controls, diversity and memorisation of what a generator drew.

    ceiling  what `measure_tokenizer` found about the tokenizer that decoded it
    """
    name, captions = drawn.name, [text for shapes in drawn.halves.values() for text in shapes.captions]
    target_NA = np.concatenate([shapes.attributes for shapes in drawn.halves.values()])
    read_NA = evaluator.judge.predict(drawn.images)
    record = f"Shapes drawn: {GENERATOR_TITLES[name].lower()}"
    protocol = {
        **drawn.protocol,
        "target": f"{OF_CEILING:.0%} of the reconstruction ceiling, which counts as at least {CEILING_GATE:.0%}",
        "judge": evaluator.judge_words,
        "diversity": f"pixel variance among images of one caption, over real ones; {2 * ALIKE_HALF} captions",
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
    examples = [Example(caption=captions[i], read=_words(read_NA[i]), right=right_N[i]) for i in shown(len(captions))]
    null_target_NA = np.random.default_rng(1).permutation(target_NA)[: len(drawn.null)]
    null = {**drawn.protocol, "captions": "none: the null condition, guidance 1", "samples": len(drawn.null)}
    return merge(
        [
            Findings(figures=figures, protocols={record: protocol}, examples={f"{name}_samples": examples}),
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
    labels = [int(label) for shapes in drawn.halves.values() for label in shapes.labels[:ALIKE_HALF]]
    count = len(drawn.alike) // len(labels)
    rows = np.concatenate([np.flatnonzero(evaluator.real.labels == label)[:count] for label in labels])
    pairs = drawn.alike.numpy(), evaluator.real.images[rows] / 127.5 - 1
    ours, real = (images.reshape(len(labels), count, -1).var(1, ddof=1).mean() for images in pairs)
    low, high = DIVERSITY_RANGE
    return Figure(value=float(ours / real), unit="", protocol=record, at_least=low, at_most=high)


def _words(read_A: Tensor) -> str:
    return " ".join(values[i] for values, i in zip(ATTRIBUTES.values(), read_A.tolist(), strict=True))
