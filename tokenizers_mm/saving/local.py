"""Where a saved tokenizer stands, told by names and by config.json: no tensor is read, and no torch imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tokenizers_mm.weights import CheckpointError

__all__ = ["FORMAT", "OF_A_RUN", "is_ours", "listing", "locate", "own_config", "read_config", "refuse_path"]

FORMAT = "tokenizers-mm/1"
OF_A_RUN = "tokenizer"  # what `tmm train` leaves in a run folder


def locate(
    source: Path | str, revision: str | None = None, *, patterns: Sequence[str] | None = None
) -> tuple[Path, str | None]:
    """The local path that a source means, and the commit where it is a hub repository, which is then downloaded.

    `revision` and `patterns` are those of `download.download`. The path may be missing. Raises `CheckpointError` for a
    repository that cannot be had, and for a revision of a local path.
    """
    path = Path(source)
    if not path.exists():
        from tokenizers_mm.saving import download as hub  # its client takes a while to import

        if hub.is_repo_id(str(source)):
            got = hub.download(str(source), revision, patterns=patterns)
            return got.folder, got.commit
    if revision is not None:
        raise CheckpointError(f"{source}: revision={revision!r} is for hub repositories, and this is a local path")
    return path, None


def read_config(folder: Path) -> dict[str, Any] | None:
    """What the config.json of a folder says, whoever wrote it; None where there is none.

    Raises `CheckpointError` for a file that is not JSON or no mapping, and for the folder of a generator.
    """
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); expected read permission") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy or download it again") from error
    if not isinstance(about, dict):
        raise CheckpointError(f"{path}: expected a mapping, found {str(about)[:40]}; copy or download it again")
    if {"kind", "spec", "options"} <= about.keys():
        raise CheckpointError(f"{folder}: a generator ({about['kind']}), not a tokenizer; backbones.load reads it")
    return about


def is_ours(about: dict[str, Any]) -> bool:
    """Whether a config.json is in our format, of any version."""
    return str(about.get("format")).startswith("tokenizers-mm/")


def own_config(folder: Path) -> dict[str, Any]:
    """What `save` wrote into the config.json of a folder; `CheckpointError` where it is of another format."""
    path, about = folder / "config.json", read_config(folder)
    if about is None:
        raise CheckpointError(f"{path}: no such file; expected a folder that `tmm train` or `save` wrote")
    if about.get("format") != FORMAT or not isinstance(about.get("kind"), str):
        raise CheckpointError(f"{path}: expected format {FORMAT!r} and a kind, found {str(about)[:80]}")
    return about


def refuse_path(path: Path | str) -> NoReturn:
    """Raise `CheckpointError` for what is nothing at all."""
    raise CheckpointError(f"{path}: no such file or folder, and no hub repository's name (owner/name); check the path")


def listing(folder: Path) -> str:
    """The first names in a folder, in words."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return (", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")) or "nothing"
