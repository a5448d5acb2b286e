"""Captions that the autoregressive generator writes for shapes that nobody has seen, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from backbones import Autoregressive
from recipes.gates.figures import Example, Figure, Findings
from recipes.gates.samples import SHOWN_HALF, images_words, load_sampler, unseen_shapes
from recipes.gates.shapes import as_images, chance_range, save_stack
from tokenizers_mm.data.sets import ATTRIBUTES
from tokenizers_mm.saving import fingerprint

__all__ = ["measure_captions"]

CAPTION_GATES = {"seen": 0.90, "heldout": 0.80}
_LONGEST = 1 + max(len(" ".join(words)) for words in product(*ATTRIBUTES.values()))


@torch.no_grad()
def measure_captions(folder: Path, samples: int, progress: Callable[[str], None]) -> Findings:
    """Image -> caption by the autoregressive generator, greedily, on `samples` fresh images of each split."""
    progress(f"shapes_ar: writes captions of {samples} seen and {samples} held-out combinations")
    sampler, record = load_sampler(folder, "ar"), "Captions written"
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
        examples += rows[:SHOWN_HALF]
        pictures.append(image_BCHW[:SHOWN_HALF])
    save_stack(folder, "captions", torch.cat(pictures))
    protocol = {
        "generator": str(sampler.generator.config),
        "tokenizer": fingerprint(sampler.codec),
        "images": images_words(samples),
        "match": "greedy caption equal to the true one, every byte",
        "control": "the same captions against those of other images",
    }
    return Findings(figures=figures, protocols={record: protocol}, examples={"captions": examples})


def _shuffled_captions(written: Sequence[str], captions: Sequence[str], record: str) -> Figure:
    other = np.random.default_rng(0).permutation(np.array(captions)).tolist()
    value = _mean([a == b for a, b in zip(written, other, strict=True)])
    return Figure(value=value, unit="share", protocol=record, at_most=chance_range(written, other)[1])


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
