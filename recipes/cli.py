"""Console script `tmm`: drives every floor. Each command is a thin door to a function with the same arguments."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from recipes.compare import compare
from recipes.programs import encode, tell, verify, warn
from recipes.programs.evaluate_command import evaluate
from recipes.programs.generator_commands import caption, sample
from recipes.programs.train_command import train

app = typer.Typer(
    help="Image tokenizers and the backbones that consume them: train, measure, store, sample.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Run a command; a user's mistake is one line on stderr and exit status 1, a warning is one line."""
    warnings.showwarning = warn
    try:
        app()
    except (ValueError, ModuleNotFoundError, OSError) as error:
        tell("error:", str(error), "red")
        raise SystemExit(1) from None


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
    from recipes.schema import recipe_text, recipes_text

    print(recipes_text() if name is None else recipe_text(name), end="")


app.command()(train)
app.command("eval")(evaluate)
app.command()(encode)
app.command()(verify)


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
    from recipes.programs import convert_tokenizer

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
    from recipes.programs import families_text

    print(families_text(licences))


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
    from recipes.programs import write_dataset

    written = write_dataset(name, out, size=size, count=count, seed=seed, source=folder)
    print(f"wrote {written} images to {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="A few steps of everything: checks the path, learns nothing.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="Of generators: auto, no (float32) or bf16; default: the recipes'.")
    ] = None,
) -> None:
    """Pixels to tokens to pictures: train, encode, learn, sample, and write one page about it."""
    from recipes.demo import run_demo
    from tokenizers_mm.runtime import local_path

    folder = local_path(out, "--out")
    try:
        print(f"open {run_demo(folder, quick=quick, precision=precision)}")
    except KeyboardInterrupt:
        tell(
            "stopped:",
            f"the demo starts anew when it is called again; what it had printed is in {folder / 'logs'}",
            "yellow",
        )
        raise typer.Exit(130) from None


for command in (sample, caption, compare):
    app.command()(command)


if __name__ == "__main__":
    main()
