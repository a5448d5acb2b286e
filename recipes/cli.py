"""Console script `tmm`: its commands are those of `recipes.commands`, in this order."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from recipes.commands import evaluate, tell, warn
from recipes.commands.caption import caption
from recipes.commands.compare import compare
from recipes.commands.convert import convert
from recipes.commands.data import data
from recipes.commands.demo import demo
from recipes.commands.encode import encode
from recipes.commands.families import families
from recipes.commands.recipes import recipes
from recipes.commands.sample import sample
from recipes.commands.train import train
from recipes.commands.verify import verify

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


app.command()(recipes)
app.command()(train)
app.command("eval")(evaluate)
app.command()(encode)
app.command()(verify)
app.command()(convert)
app.command()(families)
app.command()(data)
app.command()(demo)
app.command()(sample)
app.command()(caption)
app.command()(compare)


if __name__ == "__main__":
    main()
