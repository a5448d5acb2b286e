"""`load`: a tokenizer from whatever people have. Our folders, diffusers', single files, hub repositories, towers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_mm.checkpoints import diffusers
from tokenizers_mm.checkpoints.family import Family
from tokenizers_mm.checkpoints.kinds import Model
from tokenizers_mm.checkpoints.recognise import Reading, recognise
from tokenizers_mm.checkpoints.source import configs_in, is_network, listing, refuse_folder, refuse_path
from tokenizers_mm.checkpoints.statistics import read_statistics
from tokenizers_mm.config import parse
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.saving import folder as native
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
    path, commit = Path(source), None
    if not path.exists():
        from tokenizers_mm.saving import download as hub  # its client takes a while to import

        if hub.is_repo_id(str(source)):
            got = hub.download(str(source), revision, patterns=None if file is None else [file])
            path, commit = got.folder, got.commit
    if revision is not None and commit is None:
        raise CheckpointError(f"{source}: revision={revision!r} is for hub repositories, and this is a local path")
    if file is not None:
        path = _inside(path, file)
    model: Model
    if path.is_dir():
        model = _from_folder(path, family, ema, config)
    elif path.exists():
        model = _from_file(path, family, ema, config)
    else:
        refuse_path(source)
    if stats is not None:
        if not isinstance(model, Autoencoder):
            raise CheckpointError(f"{source}: stats={stats} is for autoencoders, and this is a {type(model).__name__}")
        model = read_statistics(Path(stats), model)
    if model.provenance is not None and commit is not None:
        model.provenance = Provenance(**{**vars(model.provenance), "source": str(source), "commit": commit})
    return model.to(dtype)


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


def _from_folder(folder: Path, family: str | None, ema: bool | None, config: Mapping[str, Any] | None) -> Model:
    for inner, about in configs_in(folder):
        if str(about.get("format")).startswith("tokenizers-mm/"):
            if family or config:
                raise CheckpointError(
                    f"{folder}: a tokenizer of ours, whose config.json says all; leave family, config"
                )
            return native.load(inner)
        if about.get("_class_name") in diffusers.CLASSES:
            return _from_diffusers(inner, about, config)
        if inner == folder:  # another library's config: the weights say the rest
            return _from_file(files.find(folder), family, ema, config, about)
    refuse_folder(folder)


def _from_diffusers(folder: Path, about: Mapping[str, Any], config: Mapping[str, Any] | None) -> Autoencoder:
    path = files.find(folder)
    read = diffusers.read(about, _flat(files.read(path), path), str(folder))
    return _assembled(read, path, config)


def _from_file(
    path: Path,
    family: str | None,
    ema: bool | None,
    config: Mapping[str, Any] | None,
    about: Mapping[str, Any] | None = None,
) -> Autoencoder:
    read = recognise(files.read(path), path, family, ema, about)
    if read.rivals:
        others = ", ".join(f"{row.name} ({_differs(row)})" for row in read.rivals)
        warnings.warn(
            f"{path}: taken for {read.family.name} ({_differs(read.family)}); its keys and shapes are also those of "
            f"{others}: say family= to choose",
            stacklevel=4,
        )
    return _assembled(read, path, config)


def _assembled(read: Reading, path: Path, config: Mapping[str, Any] | None) -> Autoencoder:
    model = assemble(_merged(read.options, config or {}), read.state, path)
    if read.statistics is not None and not model.spec.discrete:
        model.set_statistics(*read.statistics)
    row = read.family
    # The file's name alone: sources are published with the tokenizer, and folders are nobody's business.
    model.provenance = Provenance(row.name, path.name, None, row.code_licence, row.weights_licence, read.ignored)
    if row.restricted:
        warnings.warn(f"{row.title}: licence of the weights: {row.weights_licence}", stacklevel=5)
    return model


def _merged(options: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `options`, dictionaries merged; another kind of quantizer replaces the whole of it."""
    out = dict(options)
    for key, value in over.items():
        here = out.get(key)
        if isinstance(value, Mapping) and isinstance(here, Mapping) and value.get("kind") in (None, here.get("kind")):
            value = _merged(here, value)
        out[key] = value
    return out


def _flat(tree: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = {key: value for key, value in tree.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: no tensors at its top level, where diffusers has them; found {', '.join(tree)}")
    return state


def _differs(row: Family) -> str:
    """What a family adds that no file says: how latents are scaled, or how codes are chosen."""
    if row.quantizer != "gaussian":
        return "codes by inner product" if row.bottleneck.get("kind") == "ibq" else "codes by distance"
    if row.scale is None:
        return "no published scale"
    return f"scale {row.scale:g}, shift {row.shift:g}" if row.shift else f"scale {row.scale:g}"
