"""What commands refuse before torch is imported, in the words of what would refuse it later: names and paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.inputs import check_generator, check_images, check_source
from tokenizers_mm.data import check_folder, check_share
from tokenizers_mm.measure import preset
from tokenizers_mm.store import require_store
from tokenizers_mm.weights import check_extractor, check_perceptual, check_tower

__all__ = ["check_measuring", "check_pair", "check_training"]


def check_training(recipe: Mapping[str, Any]) -> None:
    """Refuse a recipe, as `read_recipe` gives it, where what it starts from or reads is not there.

    Keys and values are for `parse_recipe`. Raises `ValueError`.
    """
    halves = [recipe.get("semantic"), recipe.get("perceptual")] if recipe["kind"] == "fused" else []
    for part in [recipe, *halves]:
        if isinstance(part, str):
            check_source(part)
        elif isinstance(part, Mapping):
            _check_reads(part)


def _check_reads(recipe: Mapping[str, Any]) -> None:
    if isinstance(recipe.get("start"), str):
        check_source(recipe["start"])
    if isinstance(recipe.get("tokens"), str):
        require_store(recipe["tokens"])
    images = recipe.get("data")
    if isinstance(images, Mapping) and images.get("kind") == "folder":
        if isinstance(images.get("path"), str):
            check_folder(images["path"])
        if isinstance(images.get("features"), str):
            require_store(images["features"])


def check_measuring(
    tokenizers: Sequence[str],
    images: Sequence[str | None],
    *,
    preset_name: str,
    perceptual_name: str,
    frechet: str | None,
    max_unreadable: float,
    teacher: str | None = None,
) -> None:
    """Refuse tokenizers and images that are not there, and names that mean nothing; None and "none" stand for nothing.

    Raises `ValueError`.
    """
    check_share("max_unreadable", max_unreadable)
    preset(preset_name)
    for check, names in (
        (check_source, tokenizers),
        (check_images, images),
        (check_perceptual, [perceptual_name]),
        (check_extractor, [frechet]),
        (check_tower, [teacher]),
    ):
        for name in names:
            if name not in (None, "none"):
                check(name)


def check_pair(generator: Path, tokenizer: str) -> None:
    """Refuse a generator or a tokenizer that is not there; raises `ValueError`."""
    check_generator(generator)
    check_source(tokenizer)
