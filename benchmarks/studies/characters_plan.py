"""What the character study trains: the packaged recipe `words_fsq` with seven bottlenecks at two rates.

Everything but the bottleneck and the weight of its loss is one and the same: encoder, decoder, steps, batches, seed.
VQ at 20 and 40 bits is two and four codebooks side by side, since one would have a million entries; LFQ and BSQ take
their entropies over 10 bits at a time; the scales of the multi-scale tokenizer share the bits of all positions; the
weight of the VAE's KL was chosen on words of the training split, so that it is about as many bits.
"""

from dataclasses import dataclass
from typing import Any

from plan import recipe_of

RECIPE = "words_fsq"
NAMES = ("vq", "rvq", "fsq", "lfq", "bsq", "multiscale", "vae")
BITS = (20, 40)
# Steps and pictures of the reader: enough to read more than 99 % of the characters of originals.
READER = {"steps": 1200, "pool": 20_000}

_VQ = {"kind": "vq", "decay": 0.98, "revive": 0.3, "kmeans": 5}
_SCALES = [[1, 3], [2, 6], [4, 12], [8, 24]]
_KL_WEIGHT = {20: 0.07, 40: 0.02}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One tokenizer: its bottleneck, the bits of a position, and the recipe as YAML would say it."""

    name: str
    bits: int
    recipe: dict[str, Any]

    @property
    def key(self) -> str:
        """Name of its folder and of its record."""
        return f"{self.name}-{self.bits}"


def bottleneck(name: str, bits: int) -> dict[str, Any]:
    """Options of a bottleneck of so many bits a position, a multiple of 20."""
    tens, entropy = bits // 10, {"commitment": 0.1, "entropy": 0.02, "entropy_group": 10}
    options: dict[str, dict[str, Any]] = {
        "vq": {"kind": "product", "groups": tens, "inner": _VQ | {"size": 1024, "dim": 5}},
        "rvq": {"kind": "residual", "depth": tens, "inner": _VQ | {"size": 1024, "dim": 16}},
        "fsq": {"kind": "fsq", "levels": [16] * (bits // 4)},
        "lfq": {"kind": "lfq", "dim": bits, "streams": tens, "temperature": 1.0, **entropy},
        "bsq": {"kind": "bsq", "dim": bits, "streams": tens, "temperature": 0.1, **entropy},
        "multiscale": {"kind": "multiscale", "scales": _SCALES, "phi": 0, "inner": _inner(bits)},
        "vae": {"kind": "gaussian", "dim": 16},
    }
    return options[name]


def runs(steps: int | None = None) -> list[Run]:
    """All runs in the order they are made, rate by rate; `steps` shortens every one, on few words, to try it out."""
    return [Run(name=name, bits=bits, recipe=_recipe(name, bits, steps)) for bits in BITS for name in NAMES]


def _inner(bits: int) -> dict[str, Any]:
    """Residual codebooks for all scales: 255 positions instead of 192, so three quarters of the bits each."""
    return {"kind": "residual", "depth": 3, "inner": _VQ | {"size": 2 ** (bits // 4), "dim": 16}}


def _recipe(name: str, bits: int, steps: int | None) -> dict[str, Any]:
    changes = [] if steps is None else [f"train.steps={steps}", "data.count=64"]
    if name == "vae":
        changes.append(f"objective.bottleneck={_KL_WEIGHT[bits]}")
    recipe = recipe_of(RECIPE, changes)
    return recipe | {"model": recipe["model"] | {"bottleneck": bottleneck(name, bits)}}
