"""Recipes as files: where they are and what is written there, told without importing torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers_mm.config import ConfigError, override, read_yaml

__all__ = [
    "FOR_YOUR_IMAGES",
    "RECIPE_KINDS",
    "find_recipe",
    "packaged_recipes",
    "read_recipe",
    "recipe_text",
    "recipes_text",
]

RECIPE_KINDS = ("tokenizer", "fused", "generator")
FOR_YOUR_IMAGES = ("folder_vq", "folder_vae")
_FOLDER = Path(__file__).parent.parent


def packaged_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package; those in a folder of their own keep its name."""
    return {
        path.relative_to(_FOLDER / folder).with_suffix("").as_posix(): path
        for folder in ("tokenizers", "systems")
        for path in sorted((_FOLDER / folder).rglob("*.yaml"))
    }


def recipes_text() -> str:
    """Name and first line of every packaged recipe, then which are for one's own images."""
    rows = [f"{name:24} {path.read_text().splitlines()[0].lstrip('# ')}" for name, path in packaged_recipes().items()]
    codes, latents = FOR_YOUR_IMAGES
    last = (
        f"For your own images: {codes} (codes) or {latents} (latents); to change one: tmm recipes {codes} > mine.yaml"
    )
    return "\n".join([*rows, "", last, ""])


def recipe_text(name: str) -> str:
    """The YAML of a packaged recipe; `ConfigError` for another name, with near ones."""
    known = packaged_recipes()
    if name not in known:
        raise _unknown(name)
    return known[name].read_text()


def find_recipe(name: str) -> Path:
    """Path of a recipe file; names without a folder are looked up among the packaged ones."""
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    known = packaged_recipes()
    if name not in known:
        raise _unknown(name)
    return known[name]


def read_recipe(
    name: str, assignments: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> tuple[Path, dict[str, Any]]:
    """File and contents of a recipe, by path or packaged name; its keys below kind are for `parse_recipe` to check.

    assignments  `path.to.key=value` overrides, whose values are YAML; values  of keys at the top, as they are

    Raises `ConfigError` naming file or assignment, what was found, and the remedy.
    """
    path = find_recipe(name)
    data = override(read_yaml(path), list(assignments)) | dict(values or {})
    kind = str(data.get("kind"))
    if kind not in RECIPE_KINDS:
        raise ConfigError(f"{path}.kind = {kind}: expected one of {', '.join(RECIPE_KINDS)}")
    return path, data


def _unknown(name: str) -> ConfigError:
    near = difflib.get_close_matches(name, packaged_recipes(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ConfigError(f"recipe {name!r}: no such file, and not a packaged one; {hint}`tmm recipes` lists them")
