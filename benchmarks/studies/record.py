"""The record of a study: every run with its recipe and figures, written after each, so that a study can be resumed."""

import datetime
import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


class Record:
    """A JSON file of runs by key.

    with_runs  keep the runs that the file holds already
    """

    def __init__(self, path: Path, command: str, with_runs: bool) -> None:
        self.path = path
        previous = json.loads(path.read_text()) if with_runs and path.exists() else {}
        self.data: dict[str, Any] = previous | {"runs": previous.get("runs", {})} | description(command)

    def has(self, key: str, recipe: Any) -> bool:
        """Whether this run was made with the same recipe."""
        return bool(self.data["runs"].get(key, {}).get("recipe") == json.loads(json.dumps(recipe)))

    def add(self, key: str, recipe: Any, figures: dict[str, Any]) -> None:
        """Write one more run."""
        self.data["runs"][key] = {"recipe": recipe, **figures}
        self.write()

    def write(self) -> None:
        """Write everything, whole or not at all."""
        write(self.path, json.dumps(self.data, indent=1) + "\n")


def description(command: str) -> dict[str, Any]:
    """What a reader must know to compare with another record."""
    information = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", information.read_text()) if information.exists() else None
    return {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "processor": cpu[1] if cpu else platform.processor(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("tokenizers-mm", "torch", "numpy", "pillow")},
    }


def write(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
