"""`tmm eval`: one tokenizer, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recipes.programs.arguments import Device, MaxUnreadable, Size, TokenizerName, chosen_device
from tokenizers_mm.data import ALLOWED_SHARE

__all__ = ["evaluate"]


def evaluate(
    tokenizer: TokenizerName,
    images: Annotated[str, typer.Argument(help="Image folder, or held-out photos, emoji or fashion-mnist.")],
    size: Size = None,
    preset: Annotated[
        str, typer.Option(help="Whose rules to follow: default, adm, torch-fidelity, seed, bsq-vit.")
    ] = "default",
    perceptual: Annotated[str, typer.Option(help="lpips-vgg, lpips-alex, lite0, timm:MODEL, or none.")] = "none",
    perceptual_weights: Annotated[Path | None, typer.Option(help="File with its network's weights.")] = None,
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
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first so many images.")] = None,
    max_unreadable: MaxUnreadable = ALLOWED_SHARE,
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write figures with protocol records here.")] = None,
) -> None:
    """Measure reconstruction and information: PSNR, SSIM, perceptual distance, code usage, entropy, KL; and more."""
    from recipes.programs.checks import check_measuring
    from recipes.programs.image_sets import named_folders
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
    from recipes.programs.evaluate import Extras, evaluate_images
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
