"""`tmm train`: trains what a recipe says; a signal or a full disk ends it with the command that goes on."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.commands.arguments import tell
from recipes.commands.checks import check_training
from recipes.schema import read_recipe

__all__ = ["resume_command", "train"]

_CTRL_C = 130


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe file, or the name of a packaged one: `tmm recipes` lists them; folder_vq and folder_vae are "
            "for your own images."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder: result, history, pictures, checkpoints.")],
    assign: Annotated[list[str] | None, typer.Option("--set", help="Override: path.to.key=value (repeatable).")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in the run folder.")] = False,
    start: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this tokenizer (named as for `tmm eval`), build none.")
    ] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(help="Leave this as it is: encoder, decoder or semantic (repeatable).")
    ] = None,
) -> None:
    """Train a tokenizer or a generator. Several processes: `accelerate launch -m recipes.cli train ...`.

    Ctrl-C or SIGTERM ends the step, writes a checkpoint and says how to go on (exit status 130 or 143); a second one
    ends at once.
    """
    changes: dict[str, Any] = {} if start is None else {"model": None, "start": start}
    path, data = read_recipe(recipe, assign or (), changes | ({"freeze": freeze} if freeze else {}))
    check_training(data)
    from recipes.programs import train_recipe
    from recipes.schema import parse_recipe
    from tokenizers_mm.runtime import Interrupted, WriteError, termination_raises

    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    go_on = f"go on with: {resume_command(recipe, out, assign, start, freeze)}"
    try:
        with termination_raises():
            result = train_recipe(parse_recipe(path, data), out, resume=resume)
    except KeyboardInterrupt as stop:
        if first:
            tell("stopped:", f"{str(stop) or 'at once'}; {go_on}", "yellow")
        raise typer.Exit(stop.status if isinstance(stop, Interrupted) else _CTRL_C) from None
    except WriteError as error:
        raise error.then(f"; {go_on}") from error
    if first:
        print(f"saved {result}")


def resume_command(
    recipe: str, out: Path, assign: list[str] | None, start: str | None, freeze: list[str] | None
) -> str:
    """The command line that goes on with a run, as a shell takes it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    launch = ["accelerate", "launch", "--num_processes", str(count), "-m", "recipes.cli"] if count > 1 else ["tmm"]
    words = [*launch, "train", recipe, "--out", str(out)]
    for assignment in assign or []:
        words += ["--set", assignment]
    if start is not None:
        words += ["--from", start]
    for part in freeze or []:
        words += ["--freeze", part]
    return shlex.join([*words, "--resume"])
