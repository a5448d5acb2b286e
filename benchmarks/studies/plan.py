"""Recipes of studies: packaged ones with a few changes, as plain mappings, so that a record shows what was trained."""

from collections.abc import Sequence
from typing import Any

from recipes.schema import find_recipe
from tokenizers_mm.config import override, read_yaml

# Without pictures and trackers, which cost time and are looked at by nobody.
QUIET = ("train.tracker=none", "train.picture_every=0", "train.checkpoint_every=100000")


def recipe_of(name: str, changes: Sequence[str] = (), half: str | None = None) -> dict[str, Any]:
    """The packaged recipe of that name, quiet, with `path.to.key=value` changes; `half` is one of a fused recipe's."""
    recipe = read_yaml(find_recipe(name))
    return override(recipe[half] if half else recipe, [*QUIET, *changes])
