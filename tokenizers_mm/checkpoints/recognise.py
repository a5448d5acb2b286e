"""What a file's tensors are: family, options, tensors under our names. Keys and shapes decide, never a file name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from tokenizers_mm.checkpoints import unsupported
from tokenizers_mm.checkpoints.families import Family, check_family, known_families, option, readers
from tokenizers_mm.checkpoints.parsed import Parsed, Reading, read_by
from tokenizers_mm.checkpoints.unwrap import Candidate, candidates, preferred
from tokenizers_mm.weights import CheckpointError, some

Options: TypeAlias = Mapping[str, Any]


def recognise(
    tree: Mapping[str, Any],
    where: Path | str,
    family: str | None = None,
    ema: bool | None = None,
    about: Options | None = None,
    config: Options | None = None,
) -> Parsed:
    """Find the tokenizer in a file's tensors and say what it is.

    family  a name of the table, instead of recognition
    ema     moving averages or not, where the file holds both; None does as the family's own loader
    about   the config.json beside the file, for bodies whose shapes do not show everything
    config  options of `AutoencoderConfig` that the caller states: they are laid over those found, and no family refuses
            a file for one of them

    Raises `CheckpointError` naming file, nearest family and what differs.
    """
    if family is not None:
        check_family(family, where)
    found = candidates(tree, {first for reader in readers() for first in reader.first})
    tensors = dict(_tensors(tree))
    if family is None and (name := unsupported.name_of(tensors)):
        raise CheckpointError(
            f"{where}: this is {name}, whose body this version does not have; expected one of {_names()}"
        )
    if not found:
        raise CheckpointError(
            f"{where}: no image tokenizer found: none of its {len(tensors)} keys ({some(list(tensors), 3)}) is an "
            f"encoder's first layer (encoder.conv_in.weight); expected one of {_names()}"
        )

    def first(averaged: bool) -> Parsed:
        """The first set of weights that is a tokenizer; the first one's error where none is."""
        errors = []
        for candidate in preferred(found, averaged):
            try:
                return _parsed(candidate, where, family, about or {}, config or {})
            except CheckpointError as error:
                errors.append(error)
        raise errors[0]

    parsed = first(ema is not False)
    return first(False) if ema is None and not parsed.family.ema else parsed


def _parsed(candidate: Candidate, where: Path | str, named: str | None, about: Options, config: Options) -> Parsed:
    place = f"{where} ({candidate.place})" if candidate.place != "top level" else str(where)
    readings, errors = [], []
    for reader in readers():
        naming = reader.naming_of(candidate.state)
        if naming is None:
            continue
        try:
            reading = read_by(reader, naming, candidate.state, about, place)
            _ = reading.options
        except CheckpointError as error:
            errors.append(CheckpointError(f"{error} (names are those of {naming.name})"))
        else:
            readings.append(reading)
    if not readings:
        raise errors[0] if errors else CheckpointError(_unknown_naming(candidate.state, place))
    keys = [*candidate.beside, *candidate.state, *(candidate.prefix + key for key in candidate.state)]
    row, reading, rivals = _family(readings, candidate.prefix, keys, named, config)
    parsed = reading.parsed(row, config, beside=candidate.beside, prefix=candidate.prefix, rivals=rivals)
    for key, value in parsed.state.items():
        parsed.state[key] = value.contiguous()  # a part of a kernel: a copy lets the file's pages go
    return parsed


def _family(
    readings: list[Reading], prefix: str, keys: list[str], named: str | None, told: Options
) -> tuple[Family, Reading, tuple[Family, ...]]:
    """The family that fits best, its reading, and the families that fit as well but would give something else."""
    rows = [(row, one) for one in readings for row in one.reader.families if named in (None, row.name)]
    tried = [(row, one, one.misfits(row, told, prefix)) for row, one in rows]
    fits = [(row, one) for row, one, why in tried if not why and (named or row.is_proved(one.options, keys))]
    if not fits:
        namings = sorted({one.naming.name for one in readings})
        others = named, [f"names are those of {' or '.join(namings)}, not of {named}"]
        nearest, why = min(((row.name, why) for row, _, why in tried), key=_distance, default=others)
        raise CheckpointError(
            f"{readings[0].given.where}: not recognised as {named or 'any family'}; nearest is {nearest}, but "
            f"{'; '.join(why)}; say family=, or config= for options that shapes do not show"
        )
    best, reading = max(fits, key=lambda fit: fit[0].likeness(fit[1].options, keys))
    return best, reading, tuple(row for row, other in fits if _is_rival(row, best, other.options, keys))


def _distance(misfits: tuple[str | None, list[str]]) -> int:
    """Options that differ; another kind of bottleneck counts twice."""
    return len(misfits[1]) + any(".kind is" in reason for reason in misfits[1])


def _is_rival(row: Family, best: Family, options: Options, keys: list[str]) -> bool:
    """Whether a file could as well be of this family, and what it gives would be something else."""
    if option(row.config, "bottleneck.kind") != option(best.config, "bottleneck.kind"):
        return not best.is_typical(options)
    return row.likeness(options, keys) == best.likeness(options, keys) and row.statistics != best.statistics


def _unknown_naming(keys: Collection[str], place: str) -> str:
    namings = [naming for reader in readers() for naming in reader.namings]
    nearest = min(namings, key=lambda naming: len(naming.missing(keys)) / len(naming.signature))
    missing = ", ".join(pattern.replace("\\", "") for pattern in nearest.missing(keys))
    return (
        f"{place}: not recognised; nearest are the names of {nearest.name}, which have {missing}; found "
        f"{some(list(keys), 3)}; give a whole autoencoder's file"
    )


def _tensors(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file, under its key with the names of all dictionaries around it."""
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield prefix + str(key), value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")


def _names() -> str:
    return ", ".join(sorted(row.name for row in known_families()))
