"""`tmm convert`: a public tokenizer into a folder, of ours or of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["convert"]


def convert(
    source: Annotated[str, typer.Argument(help="Weights file, diffusers folder, hub repository or tokenizer folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    to: Annotated[str, typer.Option(help="tokenizers-mm or diffusers: the layout to write.")] = "tokenizers-mm",
    family: Annotated[str | None, typer.Option(help="Instead of recognition by keys; see `tmm families`.")] = None,
    file: Annotated[str | None, typer.Option(help="Weights file inside a folder or repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    stats: Annotated[Path | None, typer.Option(help="File with the statistics of the latents.")] = None,
    ema: Annotated[bool | None, typer.Option(help="Moving averages; default: as the family's authors do.")] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="Option of the tokenizer: path.key=value.")] = None,
) -> None:
    """Read a public tokenizer and write it as a folder of ours, or in diffusers' layout."""
    from recipes.programs import convert_tokenizer

    print(
        convert_tokenizer(
            source, out, to=to, family=family, file=file, revision=revision, stats=stats, ema=ema, assign=assign or []
        )
    )
