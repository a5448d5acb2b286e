"""`tmm eval`: one tokenizer, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recipes.commands.arguments import (
    Device,
    ImageSize,
    Limit,
    MaxUnreadable,
    PerceptualName,
    PerceptualWeights,
    PresetName,
    TokenizerName,
    chosen_device,
)
from recipes.commands.checks import check_measuring
from tokenizers_mm.data import ALLOWED_SHARE

__all__ = ["evaluate", "named_folders"]


def evaluate(
    tokenizer: TokenizerName,
    images: Annotated[str, typer.Argument(help="Image folder, or held-out photos, emoji or fashion-mnist.")],
    size: ImageSize = None,
    preset: PresetName = "default",
    perceptual: PerceptualName = "none",
    perceptual_weights: PerceptualWeights = None,
    fd: Annotated[
        str | None, typer.Option(help="Frechet distance: inception (FID), lite0, timm:MODEL, open_clip:NAME/TAG.")
    ] = None,
    fd_size: Annotated[int | None, typer.Option(min=1, help="Side that its network sees.")] = None,
    fd_weights: Annotated[Path | None, typer.Option(help="File with its network's weights.")] = None,
    train: Annotated[str | None, typer.Option(help="Other real images: floor of --fd, model of --bits.")] = None,
    probe: Annotated[
        str | None, typer.Option(help="Linear probe, k-NN: emoji, fashion-mnist or a labelled folder.")
    ] = None,
    zero_shot: Annotated[str | None, typer.Option(help="Zero-shot by the text tower on such images.")] = None,
    probe_limit: Annotated[int | None, typer.Option(min=1, help="Use so many labelled images.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Cosine to lite0, timm:MODEL, open_clip:NAME/TAG.")] = None,
    bits: Annotated[bool, typer.Option("--bits", help="Effective bits under a small autoregressive model.")] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Images per second and peak memory.")] = False,
    domain: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER, measured apart (repeatable).")] = None,
    limit: Limit = None,
    max_unreadable: MaxUnreadable = ALLOWED_SHARE,
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write figures with protocol records here.")] = None,
) -> None:
    """Measure reconstruction and information: PSNR, SSIM, perceptual distance, code usage, entropy, KL; and more."""
    from tokenizers_mm.runtime import local_path

    if json_file:
        local_path(json_file, "--json")  # before anything is measured
    domains = named_folders(domain or [])
    check_measuring(
        [tokenizer],
        [images, train, probe, zero_shot, *domains.values()],
        preset_name=preset,
        perceptual_name=perceptual,
        frechet=fd,
        max_unreadable=max_unreadable,
        teacher=teacher,
    )
    from recipes.programs import Extras, evaluate_images
    from tokenizers_mm.runtime import write_text

    extras = Extras(
        frechet=fd,
        frechet_size=fd_size,
        frechet_weights=fd_weights,
        train=train,
        probe=probe,
        probe_limit=probe_limit,
        zero_shot=zero_shot,
        teacher=teacher,
        effective_bits=bits,
        speed=speed,
        domains=domains,
    )
    result = evaluate_images(
        tokenizer,
        images,
        size=size,
        perceptual_name=perceptual,
        perceptual_weights=perceptual_weights,
        limit=limit,
        preset_name=preset,
        extras=extras,
        max_unreadable=max_unreadable,
        device=chosen_device(device),
    )
    for title, part in {tokenizer: result, **result.domains}.items():
        Console(markup=False, emoji=False).print(part.table(title))  # the title is a name, to the letter
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(json_file, result.to_json() + "\n")


def named_folders(assignments: list[str]) -> dict[str, str]:
    """`NAME=FOLDER` texts as a table; `ValueError` for others, or a name that comes twice."""
    parts = [assignment.partition("=") for assignment in assignments]
    wrong = [text for text, (name, _, folder) in zip(assignments, parts, strict=True) if not name or not folder]
    if wrong or len({name for name, _, _ in parts}) < len(parts):
        raise ValueError(f"domain {(wrong or assignments)[0]!r}: expected NAME=FOLDER, every name once")
    return {name: folder for name, _, folder in parts}
