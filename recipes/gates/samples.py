"""Samples of generators on captioned shapes, for captions that were trained on and for such that were held out.

Shape letters: B batch, C, H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import backbones
from backbones import Autoregressive, Flow
from recipes.gates.shapes import save_stack
from recipes.inputs import trained_precision
from tokenizers_mm.data.sets import Shapes
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.saving import fingerprint

__all__ = [
    "ALIKE_HALF",
    "GENERATORS",
    "SAMPLING",
    "SHOWN_HALF",
    "DrawnSamples",
    "Sampler",
    "draw_samples",
    "images_words",
    "load_sampler",
    "shown",
    "unseen_shapes",
]

# Generator -> tokenizer that its tokens belong to.
GENERATORS = {"ar": "fsq", "flow": "vae"}
SAMPLING: dict[str, dict[str, Any]] = {
    "ar": {"guidance": 1.0, "temperature": 1.0},
    "flow": {"guidance": 1.25, "steps": 20, "solver": "euler"},
}
ALIKE_HALF, SHOWN_HALF = 12, 8  # captions of each split: with many images each, and in the gallery
_SEEDS = {"seen": (103, "train"), "heldout": (104, "heldout")}
_ALIKE_IMAGES, _NULL_IMAGES, _CHUNK = 16, 256, 64


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
    sampler, halves = load_sampler(folder, name), unseen_shapes(samples // 2)
    captions = [caption for shapes in halves.values() for caption in shapes.captions]
    few = [caption for shapes in halves.values() for caption in shapes.captions[:ALIKE_HALF]]
    drawn = DrawnSamples(
        name=name,
        protocol=sampler.protocol() | {"captions": images_words(samples // 2), "samples": f"{samples}, none left out"},
        halves=halves,
        images=sampler.draw(captions),
        alike=sampler.draw([caption for caption in few for _ in range(_alike(samples))], seed=2),
        null=sampler.draw([""] * min(samples, _NULL_IMAGES), seed=1, guidance=1.0),
    )
    save_stack(folder, f"{name}_samples", drawn.images[shown(samples)])
    return drawn


@dataclass(frozen=True)
class Sampler:
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


def load_sampler(folder: Path, name: str) -> Sampler:
    """Generator and tokenizer of the run shapes_NAME of a demo folder."""
    codec = Autoencoder.from_pretrained(folder / f"shapes_{GENERATORS[name]}" / "tokenizer")
    run = folder / f"shapes_{name}"
    return Sampler(name, backbones.load(run / "generator"), codec, trained_precision(run) == "bf16")


def unseen_shapes(count: int) -> dict[str, Shapes]:
    """Images nobody has seen: of combinations that were trained on, and of combinations held out."""
    return {name: Shapes(count, seed, split) for name, (seed, split) in _SEEDS.items()}  # type: ignore[arg-type]


def shown(samples: int) -> list[int]:
    """The first of each half: what the gallery shows."""
    half = samples // 2
    count = min(SHOWN_HALF, half)
    return [*range(count), *range(half, half + count)]


def images_words(count: int) -> str:
    """What `unseen_shapes` gives, for a protocol."""
    return " and ".join(f"Shapes({count}, seed={seed}, split={split!r})" for seed, split in _SEEDS.values())


def _alike(samples: int) -> int:
    """Images of one caption."""
    return min(_ALIKE_IMAGES, samples // 2)
