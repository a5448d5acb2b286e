"""`tmm families`: the public tokenizers that are recognised."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["families"]


def families(
    licences: Annotated[bool, typer.Option("--licences", help="Show licences and papers as well.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
) -> None:
    """List the public tokenizers that load recognises."""
    from recipes.programs import families_table, families_text

    print(families_table() if markdown else families_text(licences))
