"""What `load` is given, told by its name and by a folder's config.json: no tensor is read, and no torch imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from tokenizers_mm.saving import OF_A_RUN, listing, read_config, refuse_path
from tokenizers_mm.weights import INNER_FOLDERS, TOWERS, CheckpointError

__all__ = ["check_source", "configs_in", "is_network", "refuse_folder"]


def check_source(source: Path | str, *, file: str | None = None, revision: str | None = None) -> None:
    """Refuse what `load` could not even begin with, by the same `CheckpointError`; a hub repository is asked for."""
    path = Path(source)
    if path.is_dir():
        if file is None and not any(configs_in(path)):
            refuse_folder(path)
    elif not path.exists() and not is_network(str(source)):
        from tokenizers_mm.saving import download as hub

        if not hub.is_repo_id(str(source)):
            refuse_path(source)
        hub.check(str(source), revision)


def is_network(source: str) -> bool:
    """Whether this names a pretrained network of a library, and no file or folder is called that."""
    library, colon, _ = source.partition(":")
    return library in TOWERS and bool(colon) != (library == "lite0") and not Path(source).exists()


def configs_in(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What a config.json says of a tokenizer, and its folder: the one given, a run's tokenizer, a pipeline's.

    Raises `CheckpointError` for files that are not JSON, and for the folder of a generator.
    """
    for inner in ("", OF_A_RUN, *INNER_FOLDERS):
        about = read_config(folder / inner)
        if about is not None:
            yield folder / inner, about


def refuse_folder(folder: Path) -> NoReturn:
    """Raise `CheckpointError` for a folder without a tokenizer: it may be an unfinished run, or a generator's."""
    read_config(folder / "generator")
    runs = [folder / part / "run.json" for part in ("", "semantic", "perceptual")]  # a fused one is two runs
    if any(record.exists() for record in runs):
        raise CheckpointError(
            f"{folder}: a training run without a finished {OF_A_RUN}/; let it finish: tmm train RECIPE --out {folder} "
            "--resume"
        )
    raise CheckpointError(
        f"{folder}: no config.json, so this is neither a tokenizer of ours nor one in diffusers' layout; it holds "
        f"{listing(folder)}; give the weights file itself (or file=), which is recognised by its keys"
    )
