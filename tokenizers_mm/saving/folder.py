"""Save and load tokenizers: a folder with config.json and model.safetensors; written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.runtime import local_path, separate
from tokenizers_mm.runtime.writing import writing
from tokenizers_mm.saving.card import is_generated, model_card
from tokenizers_mm.saving.local import FORMAT, own_config
from tokenizers_mm.saving.saved import Saved, describe
from tokenizers_mm.weights import CheckpointError, Provenance, some

_CARD = "README.md"
# What stands beside a model in a repository and stays there when the model is written again.
_COMPANIONS = {_CARD, "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", ".gitattributes"}

S = TypeVar("S", bound=Saved)


def save(tokenizer: Saved, folder: Path | str, *, card: bool = False) -> None:
    """Write config.json and model.safetensors into `folder` (created; an older tokenizer there is replaced).

    The two halves of a fused tokenizer are in the one file, under semantic. and perceptual., a tower with its weights.

    card  writes README.md too, unless there is one that somebody else wrote; a generated one is always kept up to date

    README.md, licence and .gitattributes stay. Raises `CheckpointError` where replacing the folder would delete
    anything else, and for tokenizers that are none of `Saved`; `WriteError` (an `OSError`) where the disk is full.
    """
    config = {"format": FORMAT, **describe(tokenizer)}
    state = separate(tokenizer.state_dict())  # both halves of a fused one may be one tokenizer

    def write(partial: Path) -> None:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(state, partial / "model.safetensors")

    write_whole(
        Path(folder),
        write,
        replaces=("config.json", "model.safetensors"),
        check=own_config,
        card=lambda: model_card(tokenizer),
        new_card=card,
    )


def load(folder: Path | str, kinds: Mapping[str, type[S]]) -> S:
    """Load what `save` wrote, in eval mode and in the precision it was saved in.

    kinds  the classes that may be found, by the name of their kind

    The weights are mapped from the file, not copied. Raises `CheckpointError` naming file, finding and remedy.
    """
    folder = Path(folder)
    config = own_config(folder)
    if config["kind"] not in kinds:
        known = " or ".join(map(repr, kinds))
        raise CheckpointError(f"{folder / 'config.json'}: expected kind {known}, found {config['kind']!r}")
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); copy or save it again") from error
    where, weights = str(folder / "config.json"), f"{path} does not fit its config.json"
    try:
        made = kinds[config["kind"]].rebuild(config.get("model"), state, where=where, weights=weights)
        if config.get("origin") is not None:
            made.provenance = parse(Provenance, config["origin"], f"{where}.origin")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return cast("S", made)


def write_whole(
    folder: Path,
    write: Callable[[Path], None],
    *,
    replaces: tuple[str, ...],
    check: Callable[[Path], object],
    card: Callable[[], str],
    new_card: bool,
) -> None:
    """Let `write` fill a folder beside `folder`, then put it in its place, with README and licence of the old one.

    replaces  files of the old folder that may go; `check` raises `CheckpointError` unless they are a model of this kind
    card      text for README.md: replaces a generated one, and is written where there is none if `new_card`
    """
    kept = _companions(local_path(folder, "folder"), replaces, check)
    target = folder.resolve()
    partial, old = (target.with_name(f".{target.name}.{state}") for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    with writing(folder):
        partial.mkdir(parents=True)
        try:
            write(partial)
            for path in kept:
                shutil.copy2(path, partial)
            readme = partial / _CARD
            if is_generated(readme.read_text(errors="replace")) if readme.exists() else new_card:
                readme.write_text(card())
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(target, old)
            os.replace(partial, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.replace(old, target)
            shutil.rmtree(partial, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _companions(folder: Path, replaces: tuple[str, ...], check: Callable[[Path], object]) -> list[Path]:
    """What stays of the old folder; `CheckpointError` where anything would be lost."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: choose another name")
    found = list(folder.iterdir()) if folder.exists() else []
    kept = [path for path in found if path.name in _COMPANIONS and path.is_file()]
    foreign = sorted(path.name for path in found if path.name not in replaces and path not in kept)
    if foreign:
        raise CheckpointError(f"{folder} holds {some(foreign)}, not just a tokenizer: choose another folder")
    if len(found) > len(kept):
        try:
            check(folder)
        except CheckpointError as error:
            raise CheckpointError(f"{folder} holds no tokenizer of ours ({error}): choose another folder") from error
    return kept
