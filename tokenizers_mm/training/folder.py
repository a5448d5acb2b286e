"""The folder of a training run: run.json says what the run is, checkpoints/ holds the last states of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_mm.data import ImageError
from tokenizers_mm.runtime import write_text

__all__ = ["RunFolder"]

_KEPT_CHECKPOINTS = 2
# What may change from one part of a run to the next: it is no part of what the run computes.
_FREE = {"recipe.data.max_unreadable"}


class RunFolder:
    """A run folder and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.record = path, path / "run.json"

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, the newest last."""
        return sorted((self.path / "checkpoints").glob("step_*"))

    def last_good(self) -> str:
        """For messages: where a run can go on."""
        kept = self.checkpoints()
        return f"Last good checkpoint: {kept[-1] if kept else 'none yet'}"

    def refuse_other(self, identity: dict[str, Any], resume: bool) -> str | None:
        """Raise `ValueError` where another run is here, or this one and it is not resumed.

        Returns the precision that the run was trained in so far, where it says so.
        """
        if not self.record.exists():
            return None
        previous = json.loads(self.record.read_text())
        if not resume:
            raise ValueError(f"{self.path} holds a run already: resume it, or choose another folder")
        differences = [d for key in sorted(identity) for d in _differences(previous.get(key), identity[key], key)]
        if differences:
            raise ValueError(
                f"{self.path} holds another run, they differ in {', '.join(differences)}: resume with the same recipe, "
                "or choose another folder"
            )
        return str(previous["precision"]) if "precision" in previous else None

    def write_record(self, identity: dict[str, Any], precision: str) -> None:
        """Say what the run is, and what it is computed in, in a folder that is made if need be."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.record, json.dumps({**identity, "precision": precision}, indent=2))

    def list_unreadable(self, errors: Mapping[str, ImageError]) -> None:
        """Add images to unreadable.jsonl that are not in it: {"key": ..., "stage": ..., "reason": ...} in each line."""
        path = self.path / "unreadable.jsonl"
        text = path.read_text() if path.exists() else ""
        known = {json.loads(line)["key"] for line in text.splitlines()}
        lines = [
            json.dumps({"key": key, "stage": error.stage, "reason": error.reason}) + "\n"
            for key, error in errors.items()
            if key not in known
        ]
        if lines:
            write_text(path, text + "".join(lines))

    def checkpoint(self, step: int) -> Path:
        """Where the state after so many steps is."""
        return self.path / "checkpoints" / f"step_{step:07d}"

    @staticmethod
    def steps(checkpoint: Path) -> int:
        """After how many steps the state is that of a checkpoint."""
        return int(checkpoint.name.removeprefix("step_"))

    def partial(self, step: int) -> Path:
        """The name under which it is written: a reader never sees half of one."""
        return self.path / "checkpoints" / f".step_{step:07d}.partial"

    def begin(self, step: int) -> None:
        """Make the empty folder under that name."""
        self.discard(step)
        self.partial(step).mkdir(parents=True)

    def discard(self, step: int) -> None:
        """Leave nothing under it."""
        shutil.rmtree(self.partial(step), ignore_errors=True)

    def publish(self, step: int) -> None:
        """Give what was written its own name; only then the oldest checkpoints go."""
        shutil.rmtree(self.checkpoint(step), ignore_errors=True)
        os.replace(self.partial(step), self.checkpoint(step))
        for old in self.checkpoints()[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)


def _differences(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b})
        return [d for key in keys for d in _differences(a.get(key), b.get(key), f"{path}.{key}")]
    return [] if a == b or path in _FREE else [f"{path} ({a!r} there, {b!r} here)"]
