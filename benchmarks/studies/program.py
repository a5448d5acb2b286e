"""What the programs of all studies share: command line, what is left to do, training one tokenizer, the report."""

import argparse
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from record import Record, write

from recipes.programs import train_tokenizer
from recipes.schema import TokenizerRecipe
from tokenizers_mm.config import parse


def begin(
    name: str, about: str, parts: Sequence[str] | Sequence[int] = (), part: str = ""
) -> tuple[argparse.Namespace, Record]:
    """Options of the command line and the record; one thread, so that times are CPU times.

    parts  of the study: `options.only` are those asked for, by default all
    part   what one of them is called
    """
    options = _arguments(about, f"runs/{name.replace('_', '-')}", parts, part)
    torch.set_num_threads(1)
    command = f"python benchmarks/studies/{name}.py --out benchmarks/results/{options.out.name}"
    return options, Record(options.out, command, options.resume)


def left_to_do(
    runs: Iterable[Any], options: argparse.Namespace, record: Record, part: Callable[[Any], Any]
) -> list[Any]:
    """The runs of the parts asked for that the record does not hold already with the same recipe.

    part  of a run
    """
    wanted = [run for run in runs if part(run) in options.only]
    left = [run for run in wanted if not (options.resume and record.has(run.key, run.recipe))]
    for run in wanted:
        if run not in left:
            print(f"{run.key}: recorded already", flush=True)
    return left


def train(key: str, recipe: dict[str, Any], folder: Path, **options: Any) -> tuple[Any, float, float]:
    """Train one tokenizer from scratch in a folder; the tokenizer, and the seconds and CPU seconds that it took."""
    shutil.rmtree(folder, ignore_errors=True)
    began, cpu = time.perf_counter(), time.process_time()
    tokenizer = train_tokenizer(parse(TokenizerRecipe, recipe, key), folder, **options).eval()
    return tokenizer, round(time.perf_counter() - began, 1), round(time.process_time() - cpu, 1)


def report(
    options: argparse.Namespace,
    record: Record,
    table: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    """Write a table (.md) and a plot (.png) beside the record."""
    write(options.out.with_suffix(".md"), table(record.data))
    draw(record.data, options.out.with_suffix(".png"))
    print(f"wrote {options.out} and beside it .md and .png")


def _arguments(about: str, work: str, parts: Sequence[str] | Sequence[int], part: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="RECORD.json")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder of the runs")
    if parts:
        parser.add_argument("--only", action="append", type=type(parts[0]), choices=parts, metavar=part)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    options.only = getattr(options, "only", None) or list(parts)
    return options
