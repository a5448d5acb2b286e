"""What the study of text contrast and fused halves trains: packaged recipes and what each run changes."""

from dataclasses import dataclass
from typing import Any

from plan import recipe_of

from tokenizers_mm.config import override

SEEDS = (0, 1, 2)
TEXT_WEIGHTS = (0.0, 0.02, 0.05, 0.15)
# What each fused tokenizer is made of: how, semantic run, perceptual run.
FUSED = {
    "channel, bits of their own": ("channel", "semantic", "perceptual"),
    "sequence, bits of their own": ("sequence", "semantic", "perceptual"),
    "channel, bits shared": ("channel", "semantic-channel", "perceptual-part"),
    "sequence, bits shared": ("sequence", "semantic-sequence", "perceptual-part"),
}
# As many bits as the perceptual half has with 256 codes: 32 at each of 16 positions.
_WHOLE = "{kind: product, groups: 4, inner: {kind: vq, size: 256, dim: 8, kmeans: 10, decay: 0.95, revive: 0.3}}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: its group, its name in the tables, and the recipe as YAML would say it.

    value  the weight of the text contrast, where that is what the group changes
    start  key of the run whose tokenizer it goes on from
    """

    group: str
    name: str
    seed: int
    recipe: dict[str, Any]
    value: float | None = None
    start: str | None = None

    @property
    def key(self) -> str:
        """Name of its folder and of its record."""
        return f"{self.group}-{self.name}-seed_{self.seed}"


def runs(steps: int | None = None) -> list[Run]:
    """All runs in the order they are made; `steps` shortens every one, to try the program out."""
    every = [run for seed in SEEDS for run in (*_halves(seed), *_text(seed), *(_others() if seed == 0 else []))]
    if steps is None:
        return every
    return [Run(**vars(run) | {"recipe": override(run.recipe, [f"train.steps={steps}"])}) for run in every]


def _text(seed: int) -> list[Run]:
    """Claim B: one tokenizer, the weight of its text contrast and nothing else changes."""
    return [
        Run(group="text", name=f"{weight:g}", seed=seed, value=weight,
            recipe=_recipe("unitok", seed, [f"objective.text={weight}"]))
        for weight in TEXT_WEIGHTS
    ]  # fmt: skip


def _halves(seed: int) -> list[Run]:
    """Claim D: each half with all the bits, then with its share of them."""
    found = {
        "semantic": _recipe("fused_channel", seed, [f"model.bottleneck={_WHOLE}"], "semantic"),
        "perceptual": _recipe("fused_channel", seed, ["model.bottleneck.inner.size=256"], "perceptual"),
        "semantic-channel": _recipe("fused_channel", seed, [], "semantic"),
        "semantic-sequence": _recipe("fused_sequence", seed, [], "semantic"),
        "perceptual-part": _recipe("fused_channel", seed, [], "perceptual"),
    }
    return [Run(group="half", name=name, seed=seed, recipe=recipe) for name, recipe in found.items()]


def _others() -> list[Run]:
    """One seed: bits of a sphere under text contrast, and a semantic encoder on top of codes that stay as they are."""
    return [
        Run(group="emoji", name="qlip", seed=0, recipe=_recipe("qlip", 0, [])),
        Run(group="emoji", name="toklip", seed=0, recipe=_recipe("toklip", 0, []), start="text-0-seed_0"),
    ]


def _recipe(name: str, seed: int, assignments: list[str], half: str | None = None) -> dict[str, Any]:
    return recipe_of(name, [f"train.seed={seed}", *assignments], half)
