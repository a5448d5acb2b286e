"""`tmm encode`: an image folder into a token store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from recipes.commands.arguments import (
    TOO_MANY_QUARANTINED,
    Device,
    ImageSize,
    MaxQuarantined,
    TokenizerName,
    chosen_device,
    warn,
)
from tokenizers_mm.data import ALLOWED_SHARE

__all__ = ["encode"]

ImageFolderPath = Annotated[Path, typer.Argument(help="Folder of jpg, png or webp files; searched recursively.")]


def encode(
    tokenizer: TokenizerName,
    images: ImageFolderPath,
    out: Annotated[Path, typer.Option(help="Token store to write, or to finish.")],
    size: ImageSize = None,
    batch_size: Annotated[int, typer.Option(help="Images per encoder call.")] = 32,
    shard_size: Annotated[int, typer.Option(help="Images per shard.")] = 1024,
    captions: Annotated[
        str,
        typer.Option(
            help="auto: captions.jsonl, captions.csv or .txt files beside the images; folders: names of sub-folders; "
            "none; or a .jsonl or .csv file."
        ),
    ] = "auto",
    max_quarantined: MaxQuarantined = ALLOWED_SHARE,
    device: Device = "auto",
) -> None:
    """Encode an image folder into a token store; bad images are listed, a second run adds what is missing.

    Tokenizers that take images of one size only get that size where none is given; others take native sizes, of which
    a store holds one. A line of captions.jsonl is {"file": "a/b.png", "caption": "a red cat", "label": 3}, where
    caption and label may be missing; captions.csv has the columns file, caption, label.

    Exit status 3: the store is written, but too many images are quarantined.
    """
    from recipes.inputs import check_source, open_tokenizer
    from tokenizers_mm.data import check_folder, check_share
    from tokenizers_mm.runtime import local_path

    local_path(out, "--out")  # all before anything is loaded
    check_share("--max-quarantined", max_quarantined)
    check_source(tokenizer)
    check_folder(images)
    from tokenizers_mm.store import encode_folder

    place = chosen_device(device)
    model = open_tokenizer(tokenizer)
    with Progress(console=Console()) as progress:
        task = progress.add_task("encode")
        report = encode_folder(
            model,
            images,
            out,
            size=size,
            captions=captions,
            batch_size=batch_size,
            shard_size=shard_size,
            device=place,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    earlier = report.refused.count - report.quarantined
    print(
        f"{report.inputs} images = {report.encoded} encoded + {report.quarantined} quarantined "
        f"+ {report.skipped} already there{f' ({earlier} of them quarantined)' if earlier else ''}",
        *report.found,
        sep="\n",
    )
    complaint = report.refused.complaint(max_quarantined)
    if complaint:
        warn("\n".join(complaint))
        raise typer.Exit(TOO_MANY_QUARANTINED)
