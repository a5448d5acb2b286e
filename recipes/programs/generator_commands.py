"""`tmm sample` and `tmm caption`: a trained generator at work, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recipes.programs.arguments import Device, TokenizerName, chosen_device

__all__ = ["caption", "sample"]

GeneratorName = Annotated[Path, typer.Argument(help="Run folder, or the generator folder inside it.")]


def sample(
    generator: GeneratorName,
    tokenizer: TokenizerName,
    captions: Annotated[list[str], typer.Argument(help="One image is drawn per caption (or per class number).")],
    out: Annotated[Path, typer.Option(help="PNG to write: the images side by side.")],
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Device = "auto",
) -> None:
    """Draw images for captions."""
    from tokenizers_mm.runtime import local_path

    local_path(out, "--out")  # before anything is drawn
    _check(generator, tokenizer)
    from recipes.programs.sample import sample_images, save_strip

    place = chosen_device(device)
    images = sample_images(generator, tokenizer, captions, guidance=guidance, seed=seed, device=place)
    save_strip(images, out)
    print(f"wrote {out}")


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
    _check(generator, tokenizer)
    from recipes.programs.caption import caption_images, write_captions

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


def _check(generator: Path, tokenizer: str) -> None:
    """Refuse what is not there before torch is imported."""
    from recipes.programs.run_folder import check_generator
    from recipes.programs.tokenizer_source import check_source

    check_generator(generator)
    check_source(tokenizer)
