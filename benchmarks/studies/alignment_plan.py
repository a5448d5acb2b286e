"""What the alignment study trains: the packaged recipe `va_vae` over the weight of its alignment, then generators.

Runs differ in the weight and the seed only; at weight 0 there is no teacher.
"""

from dataclasses import dataclass
from typing import Any

from plan import QUIET

from recipes.schema import find_recipe
from tokenizers_mm.config import override, read_yaml

RECIPE = "va_vae"
WEIGHTS = (0.0, 0.03, 0.1, 0.3)
# Where the curve goes from there, with the first seed alone.
FAR = 1.0
# Of the tokenizers whose latents generators learn: not aligned, and aligned as the packaged recipe is.
COMPARED = (0.0, 0.1)
# Channels of their latents: the packaged recipe's, and twice as many, where latents become hard to learn (VA-VAE's
# reason for aligning them).
DIMS = (16, 32)
SEEDS = (0, 1, 2)
# Losses at the packaged weight, seed 0, measured on the validation images: how the packaged one was chosen.
# VA-VAE's published projection is linear; "pooled" teaches the mean latent the pooled vector.
LOSSES = {
    "cosine": {},
    "cosine, linear": {"projector": "linear"},
    "va_vae": {"loss": "va_vae"},
    "va_vae, linear": {"loss": "va_vae", "projector": "linear"},
    "va_vae, margins": {"loss": "va_vae", "margins": [0.25, 0.5]},
    "pooled": {"loss": "pooled"},
}
GENERATOR_STEPS = 600


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    kind  tokenizer, generator (on the latents of the tokenizer of the same weight, dim and seed), or loss: a tokenizer
          with another loss, called `name`
    dim   channels of the latents
    """

    kind: str
    weight: float
    seed: int
    recipe: dict[str, Any]
    name: str = ""
    dim: int = DIMS[0]

    @property
    def key(self) -> str:
        """Name of its folder and of its record."""
        called = f"-{self.name.replace(', ', '_')}" if self.name else ""
        return f"{self.kind}{called}-{self.dim}-{self.weight:g}-seed{self.seed}"

    @property
    def tokenizer(self) -> str:
        """Folder of the tokenizer that it measures, or whose latents it learns; two of the losses are the curve's."""
        own = self.kind == "loss" and self.name not in ("none", "cosine")
        return self.key if own else f"tokenizer-{self.dim}-{self.weight:g}-seed{self.seed}"


def runs(steps: int | None = None) -> list[Run]:
    """All runs in the order they are made, seed by seed; `steps` shortens every one, to try the program out."""
    made = []
    for seed in SEEDS:
        weights = (*WEIGHTS, FAR) if seed == SEEDS[0] else WEIGHTS
        for dim in DIMS:
            made += [
                Run(kind="tokenizer", weight=w, seed=seed, dim=dim, recipe=tokenizer_recipe(w, seed, steps, dim))
                for w in (weights if dim == DIMS[0] else COMPARED)
            ]
            made += [
                Run(kind="generator", weight=w, seed=seed, dim=dim, recipe=generator_recipe(seed, steps))
                for w in COMPARED
            ]
    return made + _losses(steps)


def tokenizer_recipe(weight: float, seed: int, steps: int | None = None, dim: int = DIMS[0]) -> dict[str, Any]:
    """The packaged recipe with another weight of the alignment, and without it at 0."""
    recipe = _quiet(read_yaml(find_recipe(RECIPE)), seed, steps)
    if dim != DIMS[0]:
        recipe = override(recipe, [f"model.bottleneck.dim={dim}", f"model.z_channels={2 * dim}"])
    if weight:
        return override(recipe, [f"objective.alignment.weight={weight}"])
    recipe.pop("cache_features")
    recipe["objective"] = {name: value for name, value in recipe["objective"].items() if name != "alignment"}
    return recipe


def generator_recipe(seed: int, steps: int | None = None) -> dict[str, Any]:
    """A class-conditional flow on the latents of one tokenizer; the folder of the tokens is filled in by the study."""
    recipe = {
        "kind": "generator",
        "model": {"kind": "flow", "width": 96, "depth": 4, "heads": 4, "classes": 10},
        "train": {
            "steps": GENERATOR_STEPS, "batch_size": 64, "learning_rate": 0.003, "warmup": 50, "betas": [0.9, 0.95],
            "weight_decay": 0.05, "ema": 0.99,
        },
    }  # fmt: skip
    return _quiet(recipe, seed, steps)


def _losses(steps: int | None) -> list[Run]:
    weight, seed = COMPARED[1], SEEDS[0]
    made = [Run(kind="loss", weight=0.0, seed=seed, recipe=tokenizer_recipe(0.0, seed, steps), name="none")]
    for name, change in LOSSES.items():
        assignments = [f"objective.alignment.{key}={value}" for key, value in change.items()]
        recipe = override(tokenizer_recipe(weight, seed, steps), assignments)
        made.append(Run(kind="loss", weight=weight, seed=seed, recipe=recipe, name=name))
    return made


def _quiet(recipe: dict[str, Any], seed: int, steps: int | None) -> dict[str, Any]:
    shorter = [] if steps is None else [f"train.steps={steps}"]
    return override(recipe, [*QUIET, "train.log_every=50", f"train.seed={seed}", *shorter])
