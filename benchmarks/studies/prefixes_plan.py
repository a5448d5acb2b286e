"""What the prefix study trains: the packaged recipes `flextok` and `titok` on emoji, and `rae`.

flow    `flextok` as it is: nested tokens, painted by a rectified flow
pixels  the same encoder and tokens with the decoder of `titok`, which regresses pixels
titok   `titok`, the same without nesting: a control: its tokens have no order
raster  a ViT of the same sizes with (nearly) the same bits on 4 x 4 places: a control whose tokens have one, of rows
rae     `rae` as it is, and with random weights in place of the pretrained ones
"""

from dataclasses import dataclass
from typing import Any

from plan import recipe_of

_ALL, _ONE = (0, 1, 2), (0,)
SEEDS = {"pixels": _ALL, "titok": _ALL, "raster": _ALL, "flow": _ONE, "rae": _ONE, "rae-random": _ONE}
GROUPS = tuple(SEEDS)
_RECIPES = {kind: kind for kind in GROUPS} | {
    "pixels": "titok", "flow": "flextok", "raster": "titok", "rae-random": "rae",
}  # fmt: skip
# Where pixels are regressed, all are trained alike.
_STEPS = 2000
_RASTER_LEVELS = [8, 6, 5]  # at each of 16 places: 126.5 bits, where 8 tokens have 127.7


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: what it is called above, its seed, and the recipe as YAML would say it."""

    kind: str
    seed: int
    recipe: dict[str, Any]

    @property
    def key(self) -> str:
        """Name of its folder and of its record."""
        return f"{self.kind}-seed{self.seed}"


def runs(steps: int | None = None) -> list[Run]:
    """All runs in the order they are made, seed by seed; `steps` shortens every one, to try the program out."""
    seeds = sorted({seed for seeds in SEEDS.values() for seed in seeds})
    return [
        Run(kind=kind, seed=seed, recipe=_recipe(kind, seed, steps))
        for seed in seeds
        for kind in GROUPS
        if seed in SEEDS[kind]
    ]


def _recipe(kind: str, seed: int, steps: int | None) -> dict[str, Any]:
    changes = [f"train.seed={seed}"]
    regresses = kind in ("pixels", "titok", "raster")
    if steps is not None or regresses:
        changes.append(f"train.steps={_STEPS if steps is None else steps}")
    if kind == "rae-random":
        changes.append("model.net.random_init=true")
    recipe = recipe_of(_RECIPES[kind], changes)
    if kind == "pixels":
        recipe["model"]["net"] = recipe_of("flextok")["model"]["net"]
    if kind == "raster":
        size = recipe["model"]["net"]["encoder"]
        recipe["model"]["net"] = {"kind": "vit", "patch": 8, "encoder": size}
        recipe["model"]["bottleneck"] = {"kind": "fsq", "levels": _RASTER_LEVELS}
    return recipe
