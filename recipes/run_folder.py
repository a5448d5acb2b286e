"""Where the parts of a finished run are."""

from __future__ import annotations

from pathlib import Path


def resolve(folder: Path, part: str) -> Path:
    """The tokenizer/ or generator/ folder of a run folder; any other path or name as it is."""
    return folder / part if (folder / part / "config.json").exists() else folder
