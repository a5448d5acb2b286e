"""Run folders of generators: where the generator is, and what it was trained in."""

from __future__ import annotations

import json
from pathlib import Path


def generator_folder(folder: Path) -> Path:
    """The generator/ folder of a run folder; any other path as it is."""
    return folder / "generator" if (folder / "generator" / "config.json").exists() else folder


def check_generator(folder: Path) -> None:
    """Raise `ValueError` unless a generator is there, in the folder or in the run's; nothing heavy is imported."""
    place = generator_folder(folder)
    if not (place / "config.json").is_file():
        unfinished = f": let the training in {folder} finish" if (folder / "run.json").exists() else ""
        raise ValueError(f"{place}: not a saved generator (it has no config.json){unfinished}")


def trained_precision(run: Path) -> str:
    """Arithmetic of a run's training: no (float32), bf16 or fp16; what `auto` meant where it ran.

    Raises `ValueError` for a folder that no run has written to.
    """
    record = run / "run.json"
    if not record.exists():
        raise ValueError(f"{record}: no such file; {run} holds no run, let it finish training")
    about = json.loads(record.read_text())
    return str(about.get("precision", about["train"]["precision"]))  # the first says it since there is `auto`
