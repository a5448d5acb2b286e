"""`tmm recipes`: the recipes that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from recipes.schema import recipe_text, recipes_text

__all__ = ["recipes"]


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe: the start of one of your own.")] = None,
) -> None:
    """List the recipes that come with the package, or print one."""
    print(recipes_text() if name is None else recipe_text(name), end="")
