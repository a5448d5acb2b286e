"""Which folders are token stores, told without importing what reads them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MANIFEST", "require_store"]

MANIFEST = "manifest.json"


def require_store(folder: str | Path) -> Path:
    """The path; `ValueError` where there is no token store."""
    path = Path(folder)
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path}: is not a token store (it has no {MANIFEST})")
    return path
