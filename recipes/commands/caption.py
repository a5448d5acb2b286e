"""`tmm caption`: captions for images, written by a generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recipes.commands.arguments import Device, GeneratorName, TokenizerName, chosen_device
from recipes.commands.checks import check_pair

__all__ = ["caption"]


def caption(
    generator: GeneratorName,
    tokenizer: TokenizerName,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of jpg, png or webp files.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the captions here as well, as captions.jsonl has them.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most bytes of a caption; default: as many as the generator learned.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    device: Device = "auto",
) -> None:
    """Write captions for images: path and caption on a line, a tab between them.

    Images that cannot be read are named on stderr and left out; only where none can be read is the exit status 1.
    """
    from tokenizers_mm.runtime import local_path

    if json_file is not None:
        local_path(json_file, "--json")
    check_pair(generator, tokenizer)
    from recipes.programs import caption_images, write_captions

    captions = caption_images(
        generator,
        tokenizer,
        images,
        batch_size=batch_size,
        max_length=max_length,
        device=chosen_device(device),
        skipped=lambda error: typer.echo(f"skipped {error}", err=True),
        written=lambda one: print(one.line),
    )
    if json_file is not None:
        write_captions(captions, json_file)
