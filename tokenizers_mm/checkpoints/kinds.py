"""The kinds of tokenizers that are saved: what is written of each, and how it is put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.models import Autoencoder, AutoencoderConfig, Fused, How, config_dict
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.towers import Tower, TowerConfig, build_tower
from tokenizers_mm.weights import OPTIONS_MAY_DIFFER, CheckpointError, Provenance, check_keys, load_strict, some

__all__ = ["KINDS", "Model", "describe", "identity", "kind_of", "rebuild"]

Model: TypeAlias = Autoencoder | Tower | Fused
State: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Half:
    """One half of a fused tokenizer, as config.json has it: what stands at the top there for any other tokenizer."""

    kind: str
    model: dict[str, Any]
    origin: Provenance | None = None


@dataclass(frozen=True, kw_only=True)
class FusedConfig:
    """A fused tokenizer, as config.json has it."""

    how: How
    semantic: Half
    perceptual: Half


@dataclass(frozen=True, kw_only=True)
class TowerRecord:
    """A tower, as config.json has it: the network, what is printed beside its numbers, which weights they are of."""

    network: TowerConfig
    name: str
    weights_sha256: str


@dataclass(frozen=True)
class Kind:
    """One kind: its class, the options that it is built from again, and the way back from those and the tensors.

    rebuild  options, tensors, where the options stand, where the tensors stand
    """

    made: type[Any]
    options: Callable[[Any], dict[str, Any]]
    rebuild: Callable[[Any, State, str, str], Any]


def kind_of(model: object) -> str:
    """Name of a tokenizer's kind; `CheckpointError` for one that is none of ours."""
    for name, kind in KINDS.items():
        if isinstance(model, kind.made):
            return name
    raise CheckpointError(
        f"{type(model).__name__}: only tokenizers of the kinds {', '.join(KINDS)} can be saved; "
        "write what yours needs yourself"
    )


def describe(model: Model) -> dict[str, Any]:
    """JSON-able: kind, options, and origin where there is one."""
    kind = kind_of(model)
    found: dict[str, Any] = {"kind": kind, "model": KINDS[kind].options(model)}
    if model.provenance is not None:
        found["origin"] = asdict(model.provenance)
    return found


def identity(model: Model) -> dict[str, Any]:
    """What of `describe` makes a tokenizer this one and no other: neither its origin nor that of its halves."""
    kind = kind_of(model)
    options = KINDS[kind].options(model)
    if isinstance(model, Fused):
        options |= {name: identity(getattr(model, name)) for name in ("semantic", "perceptual")}
    # Without its kind, as fingerprints were made when there was one kind only.
    return options if kind == "autoencoder" else {"kind": kind, **options}


def rebuild(kind: str, options: Any, state: State, *, where: str, weights: str) -> Model:
    """The tokenizer that `describe` and `state_dict` gave, around these very tensors, in eval mode.

    where, weights  what options and tensors came from; errors start with them

    Raises `CheckpointError` or `ConfigError` naming what does not fit.
    """
    if kind not in KINDS:
        raise ConfigError(f"{where}.kind = {kind}: expected one of {', '.join(KINDS)}")
    model: Model = KINDS[kind].rebuild(options, state, where, weights)
    return model


def _rebuild_autoencoder(options: Any, state: State, where: str, weights: str) -> Autoencoder:
    parse(AutoencoderConfig, options, where)
    model = assemble(options, state, weights)
    unsaved = sorted(model.state_dict().keys() - state.keys())  # `assemble` fills in what public files never hold
    if unsaved:
        raise CheckpointError(f"{weights}: missing keys: {some(unsaved)}; copy it again")
    return model


def _tower_options(model: Tower) -> dict[str, Any]:
    return {"network": asdict(model.config), "name": model.name, "weights_sha256": model.weights_sha256}


def _rebuild_tower(options: Any, state: State, where: str, weights: str) -> Tower:
    record = parse(TowerRecord, options, where)
    try:
        model = build_tower(record.network, random_init=True)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    load_strict(model, state, weights, remedy=OPTIONS_MAY_DIFFER, assign=True)
    model.name, model.weights_sha256 = record.name, record.weights_sha256
    return model


def _fused_options(model: Fused) -> dict[str, Any]:
    halves: dict[str, Any] = {"semantic": model.semantic, "perceptual": model.perceptual}
    return {"how": model.how, **{name: describe(half) for name, half in halves.items()}}


def _rebuild_fused(options: Any, state: State, where: str, weights: str) -> Fused:
    config = parse(FusedConfig, options, where)
    halves: dict[str, Any] = {}
    for name in ("semantic", "perceptual"):
        half: Half = getattr(config, name)
        part = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        halves[name] = rebuild(half.kind, half.model, part, where=f"{where}.{name}", weights=f"{weights}, {name} half")
        halves[name].provenance = half.origin
    try:
        model = Fused(halves["semantic"], halves["perceptual"], config.how)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    own = {key for key in model.state_dict() if not key.startswith(("semantic.", "perceptual."))}
    rest = {key: value for key, value in state.items() if not key.startswith(("semantic.", "perceptual."))}
    check_keys({key: model.state_dict()[key] for key in own}, rest, weights, remedy=OPTIONS_MAY_DIFFER)
    with torch.no_grad():
        for key, value in rest.items():
            model.get_buffer(key).copy_(value)
    return model.eval()


KINDS: dict[str, Kind] = {
    "autoencoder": Kind(Autoencoder, config_dict, _rebuild_autoencoder),
    "tower": Kind(Tower, _tower_options, _rebuild_tower),
    "fused": Kind(Fused, _fused_options, _rebuild_fused),
}
