"""`load`: a tokenizer from whatever people have. Our folders, diffusers', single files, hub repositories, towers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_mm.checkpoints import diffusers
from tokenizers_mm.checkpoints.assembled import assembled
from tokenizers_mm.checkpoints.parsed import Parsed
from tokenizers_mm.checkpoints.recognise import recognise
from tokenizers_mm.checkpoints.source import configs_in, is_network, refuse_folder
from tokenizers_mm.checkpoints.statistics import read_statistics
from tokenizers_mm.config import parse
from tokenizers_mm.models import KINDS, Autoencoder, Model
from tokenizers_mm.saving import folder as native, is_ours, listing, locate, refuse_path
from tokenizers_mm.towers import Tower, TowerConfig, build_tower
from tokenizers_mm.weights import TOWERS, CheckpointError, Provenance, files


def load(
    source: Path | str,
    *,
    file: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    ema: bool | None = None,
    stats: Path | str | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Load a tokenizer, in eval mode; what was read and under which licence is in its `provenance`.

    source    a folder that `save` wrote, or the run folder of a finished training; a folder in diffusers' layout (or a
              pipeline that has one in vae/); a weights file of any known family, recognised by key names and shapes; a
              hub repository, "owner/name"; or a pretrained network that encodes only, "timm:MODEL",
              "open_clip:MODEL/PRETRAINED", "lite0"
    file      the weights file inside a folder or repository that has no config.json, or several files
    family    a name of the table (`tmm families`) instead of recognition
    revision  branch, tag or commit of a hub repository; the commit it means is recorded
    ema       moving averages, or not, where a file holds both; None does as the family's authors do
    stats     file with the statistics of the latents, where they are published on their own (VA-VAE, REPA-E, RAE)
    config    options of `AutoencoderConfig` that no shape shows, merged over what was found; of a pretrained network
              those of `TowerConfig`
    dtype     of the nets' weights; codebooks and statistics stay float32

    Weights are mapped from the file where its format allows, so the file must stay while the tokenizer is in use.
    Nothing in a file is executed. Gives an `Autoencoder`, a `Tower` or a `Fused`; the `from_pretrained` of each takes
    no other. Raises `CheckpointError` naming the path, what was found, what was expected and what to do. Warns
    (`UserWarning`) where a licence restricts use, and where another family fits as well.
    """
    if is_network(str(source)):
        return _tower(str(source), config, file=file, family=family, revision=revision, ema=ema, stats=stats).to(dtype)
    path, commit = locate(source, revision, patterns=None if file is None else [file])
    if file is not None:
        path = _inside(path, file)
    if not path.exists():
        refuse_path(source)
    folder, about = _described(path) if path.is_dir() else (path, {})
    model: Model
    if not is_ours(about):
        found = _read(folder, about)
        parsed = _parse(found, family, ema, config)
        for text in _warnings(parsed, found.path):
            warnings.warn(text, stacklevel=2)
        # The file's name alone: sources are published with the tokenizer, and folders are nobody's business.
        model = assembled(parsed, found.path.name)
    elif family or config:
        raise CheckpointError(f"{path}: a tokenizer of ours, whose config.json says all; leave family, config")
    else:
        model = native.load(folder, KINDS)
    if stats is not None:
        if not isinstance(model, Autoencoder):
            raise CheckpointError(f"{source}: stats={stats} is for autoencoders, and this is a {type(model).__name__}")
        model = read_statistics(Path(stats), model)
    if model.provenance is not None and commit is not None:
        model.provenance = replace(model.provenance, source=str(source), commit=commit)
    return model.to(dtype)


@dataclass(frozen=True)
class _File:
    """A file's tensors, and the config.json of another library beside them, empty where there is none."""

    path: Path
    tree: Mapping[str, Any]
    about: Mapping[str, Any]


def _tower(name: str, config: Mapping[str, Any] | None, **given: object) -> Tower:
    unused = [argument for argument, value in given.items() if value is not None]
    if unused:
        raise CheckpointError(f"{name}: {unused[0]}={given[unused[0]]!r} says nothing about this network; leave it out")
    try:
        tower = build_tower(parse(TowerConfig, {"name": name, **(config or {})}, f"{name}: config"))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    library = name.partition(":")[0]
    about = getattr(getattr(tower.network, "model", None), "pretrained_cfg", None) or {}
    tower.provenance = Provenance(library, name, None, TOWERS[library], about.get("license") or "not stated")
    return tower


def _inside(folder: Path, file: str) -> Path:
    path = folder / file
    if Path(file).is_absolute() or ".." in Path(file).parts:  # links may lead out: the hub's cache is made of them
        raise CheckpointError(f"{folder}: file={file!r} leaves the folder; give a path inside it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the folder holds {listing(folder)}")
    return path


def _described(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder that holds the tokenizer, and its config.json: ours, diffusers', or at the top another library's."""
    for inner, about in configs_in(folder):
        if is_ours(about) or diffusers.is_known(about) or inner == folder:
            return inner, about
    refuse_folder(folder)


def _read(path: Path, about: Mapping[str, Any]) -> _File:
    """The tensors of a file, or of a folder with its one file of weights."""
    path = files.find(path) if path.is_dir() else path
    return _File(path, files.read(path), about)


def _parse(found: _File, family: str | None, ema: bool | None, config: Mapping[str, Any] | None) -> Parsed:
    """What the tensors are."""
    if diffusers.is_known(found.about):
        return diffusers.read(found.about, _flat(found.tree, found.path), str(found.path.parent), config)
    return recognise(found.tree, found.path, family, ema, found.about, config)


def _warnings(parsed: Parsed, path: Path) -> Iterator[str]:
    """What a user has to know: families that a file could be as well, and a licence that restricts use."""
    row = parsed.family
    if parsed.rivals:
        others = ", ".join(f"{rival.name} ({rival.difference})" for rival in parsed.rivals)
        yield (
            f"{path}: taken for {row.name} ({row.difference}); its keys and shapes are also those of {others}: say "
            "family= to choose"
        )
    if row.restricted:
        yield f"{row.title}: licence of the weights: {row.weights_licence}"


def _flat(tree: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = {key: value for key, value in tree.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: no tensors at its top level, where diffusers has them; found {', '.join(tree)}")
    return state
