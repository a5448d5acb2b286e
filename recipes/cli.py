"""Console script `tmm`: drives every floor. Each command is a thin door to a function with the same arguments."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from recipes.arguments import Device, MaxUnreadable, TokenizerName, chosen_device
from recipes.compare.command import compare
from recipes.generator_commands import caption, sample
from recipes.train_command import train

app = typer.Typer(
    help="Image tokenizers and the backbones that consume them: train, measure, store, sample.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()

ImageFolderPath = Annotated[Path, typer.Argument(help="Folder of jpg, png or webp files; searched recursively.")]
Size = Annotated[
    int | None, typer.Option(help="Resize the shorter side to this and crop the centre; default: native size.")
]
MaxQuarantined = Annotated[
    float, typer.Option(help="Share of the images that may be quarantined; more end with exit status 3.")
]
_TOO_MANY_QUARANTINED = 3


def main() -> None:
    """Run a command; a user's mistake is one line on stderr and exit status 1, a warning is one line."""
    warnings.showwarning = _warn
    try:
        app()
    except (ValueError, ModuleNotFoundError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        raise SystemExit(1) from None


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold yellow]warning:[/] {escape(str(message))}")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tokenizers-mm {version('tokenizers-mm')}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions.")
    ] = False,
) -> None:
    pass


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe: the start of one of your own.")] = None,
) -> None:
    """List the recipes that come with the package, or print one."""
    from recipes.recipe_files import recipe_text, recipes_text

    print(recipes_text() if name is None else recipe_text(name), end="")


app.command()(train)


@app.command("eval")
def evaluate_command(
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
    max_unreadable: MaxUnreadable = 0.1,
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write figures with protocol records here.")] = None,
) -> None:
    """Measure reconstruction and information: PSNR, SSIM, perceptual distance, code usage, entropy, KL; and more."""
    from recipes.checks import check_measuring
    from recipes.image_sets import named_folders
    from tokenizers_mm.paths import local_path

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
    from recipes.evaluate import Extras, evaluate_images

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
        console.print(part.table(title))
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(result.to_json() + "\n")


@app.command()
def encode(
    tokenizer: TokenizerName,
    images: ImageFolderPath,
    out: Annotated[Path, typer.Option(help="Token store to write, or to finish.")],
    size: Size = None,
    batch_size: Annotated[int, typer.Option(help="Images per encoder call.")] = 32,
    shard_size: Annotated[int, typer.Option(help="Images per shard.")] = 1024,
    captions: Annotated[
        str,
        typer.Option(
            help="auto: captions.jsonl, captions.csv or .txt files beside the images; folders: names of sub-folders; "
            "none; or a .jsonl or .csv file."
        ),
    ] = "auto",
    max_quarantined: MaxQuarantined = 0.1,
    device: Device = "auto",
) -> None:
    """Encode an image folder into a token store; bad images are listed, a second run adds what is missing.

    Tokenizers that take images of one size only get that size where none is given; others take native sizes, of which
    a store holds one. A line of captions.jsonl is {"file": "a/b.png", "caption": "a red cat", "label": 3}, where
    caption and label may be missing; captions.csv has the columns file, caption, label.

    Exit status 3: the store is written, but too many images are quarantined.
    """
    from recipes.tokenizer_source import check_source, open_tokenizer
    from tokenizers_mm.data.images import check_folder
    from tokenizers_mm.data.unreadable import check_share
    from tokenizers_mm.paths import local_path

    local_path(out, "--out")  # all before anything is loaded
    check_share("--max-quarantined", max_quarantined)
    check_source(tokenizer)
    check_folder(images)
    from tokenizers_mm.data.encode import encode_folder

    place = chosen_device(device)
    model = open_tokenizer(tokenizer)
    with Progress(console=console) as progress:
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
        _warn("\n".join(complaint))
        raise typer.Exit(_TOO_MANY_QUARANTINED)


@app.command()
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
    from recipes.convert import convert_tokenizer

    print(
        convert_tokenizer(
            source, out, to=to, family=family, file=file, revision=revision, stats=stats, ema=ema, assign=assign or []
        )
    )


@app.command()
def families(
    licences: Annotated[bool, typer.Option("--licences", help="Show licences and papers as well.")] = False,
) -> None:
    """List the public tokenizers that load recognises."""
    from recipes.convert import families_text

    print(families_text(licences))


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="Token store.")], max_quarantined: MaxQuarantined = 0.1) -> None:
    """Check every byte of a token store; exit status 1 when anything is wrong.

    Exit status 3: it is whole, but too many of the images it was made of are quarantined.
    """
    from tokenizers_mm.data.store_folder import require_store
    from tokenizers_mm.data.unreadable import check_share

    check_share("max_quarantined", max_quarantined)
    require_store(store)
    from tokenizers_mm.data.verify import verify as verify_store

    report = verify_store(store)
    complaint = report.refused.complaint(max_quarantined)
    whole = "whole, but too many are quarantined" if complaint else "whole"
    print(
        *report.problems,
        f"{report.shards} shards, {report.encoded} of {report.refused.inputs} images encoded, "
        f"{report.quarantined} quarantined: "
        f"{whole if report.ok else f'{len(report.problems)} problems'}",
        *complaint,
        sep="\n",
    )
    raise typer.Exit(1 if not report.ok else _TOO_MANY_QUARANTINED if complaint else 0)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="emoji, fashion-mnist, photos, shapes or words.")],
    out: Annotated[Path, typer.Option(help="Image folder to write.")],
    size: Annotated[int | None, typer.Option(help="Height in pixels; default: 128 for emoji, else 32.")] = None,
    count: Annotated[int, typer.Option(help="Number of shapes or words.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Random seed of the shapes or words.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Where its files are; default: packages'.")] = None,
) -> None:
    """Write a data set that needs no hub as an image folder with captions.jsonl, in train/ and a held-out part."""
    from recipes.datasets import write_dataset

    written = write_dataset(name, out, size=size, count=count, seed=seed, source=folder)
    print(f"wrote {written} images to {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="A few steps of everything: checks the path, learns nothing.")] = False,
) -> None:
    """Pixels to tokens to pictures: train, encode, learn, sample, and write one page about it."""
    from recipes.demo.run import run_demo
    from tokenizers_mm.paths import local_path

    print(f"open {run_demo(local_path(out, '--out'), quick=quick)}")


for command in (sample, caption, compare):
    app.command()(command)


if __name__ == "__main__":
    main()
