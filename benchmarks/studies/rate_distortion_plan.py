"""What the rate-distortion study trains: the packaged recipes of seven bottlenecks, and what each group changes.

In a group everything but the bottleneck and the weight of its loss is one and the same: encoder, decoder, steps,
batches, optimiser, seed.
"""

import math
from dataclasses import dataclass
from typing import Any

from plan import recipe_of

from tokenizers_mm.config import override

NAMES = ("vq", "rvq", "fsq", "lfq", "bsq", "multiscale", "vae")
# Steps of a point on a curve: enough to see a collapse, a fraction of the table's.
CURVE_STEPS = 150
ENTROPY_WEIGHTS = (0.0, 0.003, 0.02, 0.1)
DIVERSITIES = (0.5, 2.0)
TEMPERATURES = {"lfq": (0.01, 0.1, 10.0), "bsq": (0.001, 0.01, 1.0)}

_PHOTOS = {
    "photos-f8": (["model.net.patch=8", "model.image_size=[48, 48]"], {"crop": 48}, [1, 2, 3, 6]),
    "photos-f4": (["model.net.patch=4", "model.image_size=[32, 32]", "train.steps=200"], {"crop": 32}, [1, 2, 4, 8]),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: its group, its name in the table, and the recipe as YAML would say it.

    change  what a point of a curve sets otherwise than the packaged recipe does
    """

    group: str
    name: str
    recipe: dict[str, Any]
    change: dict[str, float]

    @property
    def key(self) -> str:
        """Name of its folder and of its record."""
        parts = [self.group, self.name, *(f"{key}_{value:g}" for key, value in self.change.items())]
        return "-".join(parts)


def runs(steps: int | None = None) -> list[Run]:
    """All runs in the order they are made; `steps` shortens every one, to try the program out."""
    table = [Run(group="emoji", name=name, recipe=recipe_of(name), change={}) for name in NAMES]
    coarse, fine = ([_photo_run(group, name) for name in NAMES] for group in _PHOTOS)
    every = [*table, *coarse, *_curves(), *fine]
    if steps is None:
        return every
    return [Run(**vars(run) | {"recipe": override(run.recipe, [f"train.steps={steps}"])}) for run in every]


def _photo_run(group: str, name: str) -> Run:
    """The same model on photographs, without what only emoji need; its scales are those of the other grid."""
    assignments, crops, scales = _PHOTOS[group]
    recipe = recipe_of(name, assignments)
    recipe["data"] = {"kind": "photos", "max_downscale": 3, "max_upscale": 2, **crops}
    if name == "multiscale":
        codes = _equal_rate_codes(scales)
        recipe = override(recipe, [f"model.bottleneck.scales={scales}", f"model.bottleneck.inner.size={codes}"])
    return Run(group=group, name=name, recipe=recipe, change={})


def _equal_rate_codes(scales: list[int], bits: float = 10.0) -> int:
    """Size of the codebook that gives all scales together at most `bits` per position of the finest."""
    return math.floor(2 ** (bits * scales[-1] ** 2 / sum(side**2 for side in scales)))


def _curves() -> list[Run]:
    """LFQ and BSQ over the weight of the entropies, the temperature and the share of diversity, one at a time."""
    points = []
    for name, temperatures in TEMPERATURES.items():
        start = recipe_of(name)["model"]["bottleneck"]
        changes = [{"entropy": value} for value in ENTROPY_WEIGHTS]
        changes += [{"temperature": value} for value in temperatures if value != start["temperature"]]
        changes += [{"diversity": value} for value in DIVERSITIES]
        # Controls: without the linear code to start from, with the tuned entropy terms and without any.
        changes += [{"linear": 0.0}, {"linear": 0.0, "entropy": 0.0}]
        for change in changes:
            assignments = [f"{_place(key)}={value if key != 'linear' else False}" for key, value in change.items()]
            recipe = recipe_of(name, [*assignments, f"train.steps={CURVE_STEPS}"])
            points.append(Run(group="curve", name=name, recipe=recipe, change=change))
    return points


def _place(option):
    return f"model.{option}" if option == "linear" else f"model.bottleneck.{option}"
