"""diffusers' autoencoders as tokenizers: their folders and live objects, and folders that their classes load.

Nothing here imports diffusers: a config.json and the weights beside it, or an object with `config` and `state_dict`,
say everything. What each class says and holds stands with its family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from tokenizers_mm.checkpoints.assembled import assembled
from tokenizers_mm.checkpoints.families import DiffusersClass, Family, Naming, Reader, agree, diffusers_classes, needs
from tokenizers_mm.checkpoints.parsed import Parsed, Reading, read_by
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.models import Autoencoder, AutoencoderConfig
from tokenizers_mm.saving import model_card, write_whole
from tokenizers_mm.weights import CheckpointError

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def is_known(about: Mapping[str, Any]) -> bool:
    """Whether a config.json names a class of diffusers that is read here."""
    return any(known.name == about.get("_class_name") for _, known in diffusers_classes())


def read(
    about: Mapping[str, Any], state: Mapping[str, Tensor], where: str, config: Mapping[str, Any] | None = None
) -> Parsed:
    """What a config.json of diffusers and the weights beside it are; tensors are views of those given.

    where   path that starts every error message
    config  options of `AutoencoderConfig` that the caller states

    Raises `CheckpointError` naming the entry of config.json that is not as the weights have it, or the class.
    """
    if not is_known(about):
        name = about.get("_class_name")
        raise CheckpointError(f"{where}: _class_name = {name}: expected one of {_names()}; choose another")
    fits = [(reader, known) for reader, known in diffusers_classes() if known.is_class_of(about)]
    reader, known = max(fits, key=lambda fit: len(fit[1].when))
    naming = reader.naming_of(state)
    if naming is None:
        missing = ", ".join(_naming(reader).missing(state)).replace("\\", "")
        raise CheckpointError(f"{where}: no {missing}: these are not weights of {known.name}; copy them again, whole")
    reading = read_by(reader, naming, state, about, where)
    row = _family(reading, known)
    if known.describe is not None:
        _check(reading, known)
    return reading.parsed(row, config or {})


def from_diffusers(vae: nn.Module) -> Autoencoder:
    """A live autoencoder of diffusers as a tokenizer in eval mode, around the same weights: nothing is copied.

    Training one trains the other. Device and precision stay; a codebook in 16 bits is copied to float32, and so are the
    statistics of latents. Raises `CheckpointError` for other classes and for options that our nets do not have.
    """
    name = type(vae).__name__
    config = getattr(vae, "config", None)
    if not is_known({"_class_name": name}) or not isinstance(config, Mapping):
        raise CheckpointError(f"{name}: expected an object of diffusers' {_names()}; load one of these")
    state = vae.state_dict()
    for key, value in state.items():
        if value.is_meta or not (value.is_floating_point() or key.endswith("num_batches_tracked")):
            found = "no memory (meta device)" if value.is_meta else str(value.dtype)
            raise CheckpointError(f"{name}: {key} has {found}: expected floats in memory; load it without quantization")
    source = str(config.get("_name_or_path") or f"an object of diffusers' {name}")
    model = assembled(read({**config, "_class_name": name}, state, name), source)
    device = next(iter(state.values())).device
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(device))
    model.bottleneck.float()
    return model


def to_diffusers(tokenizer: Autoencoder, folder: Path | str) -> None:
    """Write config.json and diffusion_pytorch_model.safetensors; the class is named in the first.

    A tokenizer of diffusers' that is there already is replaced; README.md and licence stay. Statistics of latents
    become scaling_factor and shift_factor where all channels have the same, else latents_mean and latents_std, which
    not every pipeline of diffusers reads. Raises `CheckpointError` naming the option that diffusers cannot express, and
    for folders with other content.
    """
    folder = Path(folder)
    entries, state = _described(tokenizer, folder)

    def write(partial: Path) -> None:
        (partial / "config.json").write_text(json.dumps(entries, indent=2) + "\n")
        save_file({key: value.contiguous() for key, value in state.items()}, partial / _WEIGHTS, {"format": "pt"})

    write_whole(
        folder,
        write,
        replaces=("config.json", _WEIGHTS),
        check=_check_folder,
        card=lambda: model_card(tokenizer),
        new_card=False,
    )


def _names() -> str:
    return ", ".join(dict.fromkeys(known.name for _, known in diffusers_classes()))


def _check(reading: Reading, known: DiffusersClass) -> None:
    """Refuse entries of config.json that the weights do not bear out, and entries that nobody here knows."""
    given = reading.given
    try:
        config = parse(AutoencoderConfig, {"image_size": (256, 256), **reading.options}, f"{given.where}: config")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    assert known.describe is not None
    entries = known.describe(
        config, needs(lambda text: CheckpointError(f"{given.where}: {text}; these are not its weights"))
    )
    for name, value in given.about.items():
        if name not in entries and name not in known.idle and not name.startswith("_"):
            raise CheckpointError(
                f"{given.where}: {name} = {value!r}: no option of {known.name} that is known here; expected "
                f"{', '.join(sorted({*entries, *known.idle}))}; remove it if the weights do not need it"
            )
    agree(given.about, {name: value for name, value in entries.items() if name not in known.idle}, given.where)


def _family(reading: Reading, known: DiffusersClass) -> Family:
    """The row whose structure and published statistics these are, else the one of the class.

    A row claims licences, and AutoencoderKL is anybody's class: the whole structure and the same numbers are asked.
    """
    reader, options, where = reading.reader, reading.options, reading.given.where  # a wrong structure is told first
    measured = reader.statistics(reading.given)
    channels = reading.given.about.get("in_channels", reading.given.about.get("input_channels"))
    told = {"net": {"image_channels": channels}}
    for row in reader.families:
        published = measured is not None and isinstance(measured[0], float) and measured == row.statistics
        if published and row.is_typical(options) and not reading.misfits(row, told):
            return row
    row = next(row for row in reader.families if row.name == known.family)
    if reasons := reading.misfits(row, told):
        raise CheckpointError(f"{where}: not recognised as {row.name}: {'; '.join(reasons)}; choose another")
    return row


def _described(tokenizer: Autoencoder, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights."""
    config, kind = tokenizer.config, tokenizer.bottleneck.kind
    need = needs(
        lambda text: CheckpointError(f"{folder}: {text}, so it cannot be written; use our own format (`save`)")
    )
    need("linear", config.linear, False)
    need("pixel_mean", set(config.pixel_mean), {0.5})
    need("pixel_std", set(config.pixel_std), {0.5})
    need("latent_positions", config.latent_positions, False)
    written = [(reader, known) for reader, known in diffusers_classes() if known.tensors is not None]
    need("net.kind", config.net.kind, *dict.fromkeys(known.net for _, known in written))
    written = [(reader, known) for reader, known in written if known.net == config.net.kind]
    need("bottleneck.kind", kind, *(bottleneck for _, known in written for bottleneck in known.bottlenecks))
    reader, known = next((r, c) for r, c in written if kind in c.bottlenecks and c.suits(config))
    assert known.describe is not None
    assert known.tensors is not None
    described, (added, tensors) = known.describe(config, need), known.tensors(tokenizer, need)
    state = {
        name: value.detach()
        for name, value in tokenizer.state_dict().items()
        if not name.startswith(("bottleneck.", "latent_"))
    }
    table = _naming(reader).table(state)
    return {"_class_name": known.name, **described, **added}, table.write(state, str(folder)) | tensors


def _naming(reader: Reader) -> Naming:
    return next(naming for naming in reader.namings if naming.name == "diffusers")


def _check_folder(folder: Path) -> None:
    """Refuse a folder whose config.json is not of a class that is written here."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    written = dict.fromkeys(known.name for _, known in diffusers_classes() if known.tensors is not None)
    if not isinstance(config, dict) or config.get("_class_name") not in written:
        raise CheckpointError(f"{path}: expected _class_name of {', '.join(written)}, found {str(config)[:80]}")
