"""What a file's tensors are: family, options, tensors under our names. Keys and shapes decide, never a file name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_mm.checkpoints import layouts, readers as bodies, unsupported as doors
from tokenizers_mm.checkpoints.families import BY_NAME, FAMILIES, check_family
from tokenizers_mm.checkpoints.family import Family
from tokenizers_mm.checkpoints.structure import Facts, facts_of
from tokenizers_mm.checkpoints.unwrap import Candidate, candidates, preferred
from tokenizers_mm.weights import CheckpointError

# Keys that training left beside a tokenizer: losses, teachers, counters and tables that follow from the options.
_DROPPED = re.compile(
    r"loss\..*|discriminator\..*|foundation_model\..*|linear_proj\..*|colorize|.*num_batches_tracked|"
    r"quantize\.(codebook_used|ema_vocab_hit_SV|vocab_usage|power_vals|embedding|used)|quantizer?\.lfq\..*|logvar"
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A file understood.

    family      what it is; rivals  families that it could be as well, with another scale of latents or other codes
    options     of `AutoencoderConfig`, as plain data
    state       the tokenizer's tensors under our names
    statistics  mean and deviation of the latents, None where nothing is known
    ignored     patterns of keys that the tokenizer does not need
    """

    family: Family
    options: dict[str, Any]
    state: dict[str, Tensor]
    statistics: tuple[Any, Any] | None
    ignored: tuple[str, ...]
    rivals: tuple[Family, ...] = ()


def recognise(
    tree: Mapping[str, Any],
    where: Path | str,
    family: str | None = None,
    ema: bool | None = None,
    about: Mapping[str, Any] | None = None,
) -> Reading:
    """Find the tokenizer in a file's tensors and say what it is.

    about   the config.json beside the file, for bodies whose shapes do not show everything
    family  a name of the table, instead of recognition
    ema     moving averages or not, where the file holds both; None does as the family's own loader

    Raises `CheckpointError` naming file, nearest family and the keys that differ.
    """
    if family is not None:
        check_family(family, where)
    found, keys = candidates(tree), _all_keys(tree)
    if family is None and (door := doors.door_of(keys)):
        raise CheckpointError(
            f"{where}: this is {door}, whose body this version does not have; expected one of {_names()}"
        )
    if not found:
        raise CheckpointError(
            f"{where}: no image tokenizer found: none of its {len(keys)} keys ({_some(keys)}) is an encoder's first "
            f"layer (encoder.conv_in.weight); expected one of {_names()}"
        )
    reading = _first(preferred(found, True if ema is None else ema), where, family, about)
    if ema is None and not reading.family.ema:
        reading = _first(preferred(found, False), where, family, about)
    return reading


def _first(found: list[Candidate], where: Path | str, family: str | None, about: Mapping[str, Any] | None) -> Reading:
    """The first set of weights that is a tokenizer; the first one's error where none is."""
    errors = []
    for candidate in found:
        try:
            return _read(candidate, where, family, about)
        except CheckpointError as error:
            errors.append(error)
    raise errors[0]


def _read(candidate: Candidate, where: Path | str, family: str | None, about: Mapping[str, Any] | None) -> Reading:
    dropped = [key for key in candidate.state if _DROPPED.fullmatch(key)]
    state = {key: value for key, value in candidate.state.items() if key not in set(dropped)}
    place = f"{where} ({candidate.place})" if candidate.place != "top level" else str(where)
    ignored = _patterns([*candidate.beside, *(candidate.prefix + key for key in dropped)])
    if body := bodies.body_of(state):
        row = _body_family(body.families, family, place, state)
        return Reading(
            family=row,
            options=body.options(state, about, place),
            state=body.rename(state),
            statistics=body.statistics(state, about),
            ignored=(*ignored, *_layers(body.unused(state))),
        )
    layout = layouts.layout_of(state)
    if layout is None:
        raise CheckpointError(_no_layout(state, place))
    ours = layouts.renamed(layout, state)
    facts = facts_of({key: tuple(value.shape) for key, value in ours.items()}, place)
    row, rivals = _family(layout.name, facts, candidate, place, family)
    statistics: tuple[Any, Any] | None = None if row.scale is None else (row.shift, 1 / row.scale)
    if "bn.running_var" in ours:
        statistics = ours.pop("bn.running_mean"), (ours.pop("bn.running_var") + 1e-4).sqrt()
    return Reading(
        family=row,
        options=_options(row, facts),
        state=ours,
        statistics=statistics,
        ignored=ignored,
        rivals=rivals,
    )


def _family(
    layout: str, facts: Facts, candidate: Candidate, place: str, named: str | None
) -> tuple[Family, tuple[Family, ...]]:
    """The family that fits best, and those that fit as well but would give something else."""
    rows = FAMILIES if named is None else (BY_NAME[named],)
    misfits = {row.name: row.misfits(layout, facts, candidate.prefix) for row in rows if row.layouts != ("body",)}
    keys = [*candidate.beside, *candidate.state, *(candidate.prefix + key for key in candidate.state)]
    fits = [row for row in rows if misfits.get(row.name) == [] and (named or row.is_proved(facts, keys))]
    if not fits:
        nearest = min(misfits, key=lambda name: len(misfits[name]), default=named)
        reasons = "; ".join(misfits.get(str(nearest), ["it has a body of its own"]))
        raise CheckpointError(
            f"{place}: not recognised as {'any family' if named is None else named}; nearest is {nearest}, but "
            f"{reasons}; say family=, or config= for options that shapes do not show"
        )
    best = max(fits, key=lambda row: row.likeness(facts, keys))
    return best, tuple(row for row in fits if _rivals(row, best, facts, keys))


def _rivals(row: Family, best: Family, facts: Facts, keys: list[str]) -> bool:
    """Whether a file could as well be of this family, and what it gives would be something else."""
    if row.bottleneck.get("kind") != best.bottleneck.get("kind"):
        return not best.is_typical(facts)
    equal = row.likeness(facts, keys) == best.likeness(facts, keys)
    return equal and (row.scale, row.shift) != (best.scale, best.shift)


def _body_family(names: tuple[str, ...], named: str | None, place: str, state: Mapping[str, Tensor]) -> Family:
    if named is not None and named not in names:
        raise CheckpointError(f"{place}: not recognised as {named}: its keys are those of {' or '.join(names)}")
    return BY_NAME[named or names[0]]


def _options(family: Family, facts: Facts) -> dict[str, Any]:
    """Options of `AutoencoderConfig`: what shapes tell, then what the table adds."""
    sizes = {"dim": facts.latent} | ({"size": facts.size} if facts.size else {})
    bottleneck: dict[str, Any] = {"kind": "gaussian" if facts.quantizer == "gaussian" else "vq"} | sizes
    net = facts.net | dict(family.config.get("net", {}))
    image_size = family.config.get("image_size", (256, 256))
    if "scales" in family.bottleneck:
        inner = bottleneck | dict(family.bottleneck["inner"])
        if inner["kind"] == "bsq":  # every bit is a stream: 2^dim codes fit no vocabulary
            inner["streams"] = facts.latent
        phi = {"phi": facts.convolutions}
        bottleneck = {"kind": "multiscale", **phi, **family.bottleneck, "inner": inner}
        side = family.bottleneck["scales"][-1] * 2 ** (len(net["multipliers"]) - 1)
        image_size = (side, side)
    else:
        bottleneck |= family.bottleneck
    if bottleneck["kind"] == "ibq":
        bottleneck = {"kind": "ibq"} | sizes
    return {
        **{key: value for key, value in family.config.items() if key not in ("net", "image_size")},
        "image_size": image_size,
        "bottleneck": bottleneck,
        "net": net,
        "z_channels": facts.z_channels,
        "quant_conv": facts.quant_conv,
        "post_quant_conv": facts.post_quant_conv,
        "latent_patch": facts.patch,
    }


def _no_layout(state: Mapping[str, Tensor], place: str) -> str:
    nearest = min(layouts.LAYOUTS, key=lambda layout: len(layout.fits(state)) / len(layout.signature))
    missing = ", ".join(pattern.replace("\\", "") for pattern in nearest.fits(state))
    return (
        f"{place}: not recognised; nearest are the names of {nearest.name}, which have {missing}; found "
        f"{_some(state)}; give a whole autoencoder's file"
    )


def _all_keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        if isinstance(value, Tensor):
            keys.append(prefix + str(key))
        elif isinstance(value, Mapping):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys


def _names() -> str:
    return ", ".join(sorted(BY_NAME))


def _some(keys: Iterable[str], count: int = 3) -> str:
    keys = list(keys)
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")


def _patterns(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys as patterns of their first part, with counts: a language model has thousands of them."""
    counts = Counter(key.split(".", 1)[0] + ".*" if "." in key else key for key in keys)
    return tuple(f"{pattern} ({count})" for pattern, count in counts.items())


def _layers(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys as patterns of the layer they belong to, with counts."""
    counts = Counter(f"*.{key.split('.')[-2]}.*" for key in keys)
    return tuple(f"{pattern} ({count})" for pattern, count in counts.items())
