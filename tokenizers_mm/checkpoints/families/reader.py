"""What one lineage of public tokenizers is: how its files are recognised, read, and written for diffusers.

How to add a family:

1. Another row of a lineage that is here already (another scale, licence, codebook): one `Family(...)` in its file.
2. A new body: its net in `tokenizers_mm/nets`, with a line in the table there. An option of a net is a value that two
   families want; another topology is another body.
3. A new file beside this one with one `READER`: `namings` (the keys that only such files have, and a table of `names`),
   `first` (the encoder's first layer, which finds it in larger files), `options` (what shapes and config.json tell of
   `AutoencoderConfig`), `dropped` (keys left from training), and its rows.
4. Where diffusers has a class for it, an entry in `diffusers`: what its config.json says, and what is written.
5. The file's name in the tuple of `table.py`. A name in `unsupported.py` goes.
6. A golden in `tests/goldens`: key names, and what the public class gave. `tests/test_goldens.py` finds it by itself,
   and so does the test that changes one thing in every golden and wants a right reading or a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.weights import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizers_mm.models import Autoencoder, AutoencoderConfig

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
About: TypeAlias = Mapping[str, Any]  # a config.json; empty where there is none
Statistics: TypeAlias = "tuple[Tensor | list[float] | float, Tensor | list[float] | float] | None"

# Images of other than these channels are read only where a family or the caller says so: a file of 48 channels in front
# of its first layer has folded or transformed its pixels in a way that no shape shows.
IMAGE_CHANNELS = frozenset({1, 3, 4})


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file holds of a tokenizer.

    keys   as they stand in it; state  its tensors under our names
    about  the config.json beside it, empty where there is none
    where  path that starts every error message
    """

    keys: Collection[str]
    state: Mapping[str, Tensor]
    about: Mapping[str, Any]
    where: str

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, under our names."""
        return {key: tuple(value.shape) for key, value in self.state.items()}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: a published tokenizer, and what no shape of its files shows.

    namings     of its reader, that its files come in; empty for all
    needs       options that its files must have, by dotted names: a value, or a frozenset of them
    prefix      what its keys must start with, where the tokenizer lives in another model's file
    marks       patterns of keys (in full) that only this family's files hold; a file needs none of them
    typical     options of the published files; a file that has them fits better
    proof       whether recognition needs the first mark or the typical options: what it adds would be wrong elsewhere
    config      options that shapes do not show, laid over those that they do
    scale, shift  published latents are (z - shift) * scale; None where nothing was published
    adds        what `config` changes, in words, where another family fits the same files
    ema         whether the authors' own loader prefers moving averages where a file holds both
    code_licence, weights_licence, restricted  licences as far as stated, and whether they limit use
    parameters  of encoder and decoder, in millions, as published
    """

    name: str
    title: str
    paper: str
    namings: tuple[str, ...] = ()
    needs: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    marks: tuple[str, ...] = ()
    typical: Mapping[str, Any] = field(default_factory=dict)
    proof: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    scale: float | None = None
    shift: float = 0.0
    adds: str = ""
    ema: bool = True
    code_licence: str = "not stated"
    weights_licence: str = "not stated"
    restricted: bool = False
    parameters: float | None = None

    def likeness(self, options: Mapping[str, Any], keys: Collection[str]) -> tuple[int, int]:
        """How well a file fits: marks found, then typical options found."""
        marks = sum(any(re.match(mark, key) for key in keys) for mark in self.marks)
        return marks, sum(option(options, name) == value for name, value in self.typical.items())

    def is_proved(self, options: Mapping[str, Any], keys: Collection[str]) -> bool:
        """Whether a file shows what this family asks for, where it asks for something."""
        marked = any(re.match(self.marks[0], key) for key in keys) if self.marks else False
        return not self.proof or marked or self.is_typical(options)

    def is_typical(self, options: Mapping[str, Any]) -> bool:
        """Whether a file has the options of the published ones."""
        return all(option(options, name) == value for name, value in self.typical.items())

    @property
    def statistics(self) -> Statistics:
        """Mean and deviation of the latents, as published."""
        return None if self.scale is None else (self.shift, 1 / self.scale)

    @property
    def difference(self) -> str:
        """What it adds that no file says, in words."""
        if self.adds or self.scale is None:
            return self.adds or "no published scale"
        return f"scale {self.scale:g}, shift {self.shift:g}" if self.shift else f"scale {self.scale:g}"


@dataclass(frozen=True, kw_only=True)
class Naming:
    """A scheme of key names: how to tell it, and the table that turns it into ours.

    signature  patterns of whole keys, each of which some key matches
    names      the table, or what makes it from the keys of a file
    """

    name: str
    signature: tuple[str, ...]
    names: Names | Callable[[Collection[str]], Names]

    def missing(self, keys: Collection[str]) -> list[str]:
        """Patterns of the signature that no key matches: none where it is this naming."""
        return [pattern for pattern in self.signature if not any(re.fullmatch(pattern, key) for key in keys)]

    def table(self, keys: Collection[str]) -> Names:
        """The table for a file of these keys."""
        return self.names if isinstance(self.names, Names) else self.names(keys)


class Needs:
    """Whether a class of diffusers has words for options of ours."""

    def __init__(self, refuse: Callable[[str], Exception]) -> None:
        self.refuse = refuse

    def __call__(self, name: str, found: Any, *allowed: Any) -> None:
        """Raise what `refuse` makes of the reason, unless an option has one of the values that the class has."""
        if found not in allowed:
            raise self.refuse(f"{name}={found!r} is none of {' or '.join(map(repr, allowed))}, which diffusers has")


@dataclass(frozen=True, kw_only=True)
class DiffusersClass:
    """A class of diffusers: which of our tokenizers are its objects, and what its config.json says of them.

    when      entries of config.json that tell it from another of the same name, which has fewer
    family    the row that its files are of, unless another has the published scale and fits
    describe  what config.json says of options of ours; raises, by `Needs`, for those that it has no word for. None
              where the reader compares its config.json itself
    idle      entries of config.json that change nothing here, or that the reader uses itself
    net, bottlenecks, suits  which tokenizers are written as this class; none where `tensors` is None
    tensors   what else is written: entries of config.json, and tensors under their names, of a tokenizer
    """

    name: str
    when: Mapping[str, Any] = field(default_factory=dict)
    family: str
    describe: Callable[[AutoencoderConfig, Needs], dict[str, Any]] | None = None
    idle: Collection[str] = ()
    net: str = "conv"
    bottlenecks: tuple[str, ...] = ()
    suits: Callable[[AutoencoderConfig], bool] = lambda config: True
    tensors: Callable[[Autoencoder, Needs], tuple[dict[str, Any], dict[str, Tensor]]] | None = None

    def is_class_of(self, about: About) -> bool:
        """Whether this config.json is of this class."""
        return about.get("_class_name") == self.name and all(about.get(key) == self.when[key] for key in self.when)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How the files of one body are read, and written for diffusers.

    namings     schemes of key names that its files come in
    first       names of the encoder's first layer in them, without prefixes
    options     of `AutoencoderConfig`, as plain data, as far as a file shows them
    statistics  (mean, deviation) of the latents; None leaves them to the row
    needs       options that its files must have, as in `Family`
    dropped     patterns of keys, in our names, that a tokenizer does not need
    families    the rows, the likeliest first
    diffusers   its classes there
    config_json whether its files cannot be read without the config.json beside them
    """

    namings: tuple[Naming, ...]
    first: tuple[str, ...] = ("encoder.conv_in",)
    options: Callable[[Contents], dict[str, Any]]
    statistics: Callable[[Contents], Statistics] = lambda given: None
    needs: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    families: tuple[Family, ...]
    diffusers: tuple[DiffusersClass, ...] = ()
    config_json: bool = False

    def naming_of(self, keys: Collection[str]) -> Naming | None:
        """The first naming whose whole signature is there."""
        return next((naming for naming in self.namings if not naming.missing(keys)), None)

    def misfits(
        self, row: Family, naming: str, prefix: str, options: Mapping[str, Any], told: Collection[str]
    ) -> list[str]:
        """What keeps a file out of a family, in words; empty where it fits.

        told  dotted names of options that the caller states, which therefore are as they should be
        """
        found = []
        if row.namings and naming not in row.namings:
            found.append(f"names are those of {naming}, not of {' or '.join(row.namings)}")
        if row.prefix and not prefix.endswith(row.prefix):
            found.append(f"keys start with {prefix!r}, not {row.prefix!r}")
        for name, value in {"net.image_channels": IMAGE_CHANNELS, **self.needs, **row.needs}.items():
            here, allowed = option(options, name), value if isinstance(value, frozenset) else (value,)
            if here not in allowed and name not in told:
                found.append(f"{name} is {here}, not {' or '.join(map(str, sorted(allowed, key=str)))}")
        return found


def option(options: Mapping[str, Any], name: str) -> Any:
    """The option of a dotted name, lists as tuples; None where there is none."""
    value: Any = options
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, list | tuple):
        value = tuple(int(v) if isinstance(v, float) and v.is_integer() else v for v in value)
    return value


def laid_over(options: Mapping[str, Any], over: Mapping[str, Any], *, keep_kinds: bool = False) -> dict[str, Any]:
    """`over` laid on `options`, dictionaries merged.

    keep_kinds  a dictionary of another kind, such as another quantizer, replaces the whole of the one that is there
    """
    out = dict(options)
    for key, value in over.items():
        here = out.get(key)
        if isinstance(value, Mapping) and isinstance(here, Mapping):
            other = keep_kinds and value.get("kind") not in (None, here.get("kind"))
            value = value if other else laid_over(here, value, keep_kinds=keep_kinds)
        out[key] = value
    return out


def agree(about: About, entries: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json that says something else than weights and options do; what it does not say is not compared.

    entries  what it should say
    """
    for name, value in entries.items():
        if about.get(name) is not None and not _same(about[name], value):
            raise CheckpointError(
                f"{where}: config.json has {name} = {about[name]!r}, expected {value!r}, as the weights have it; take "
                "the config.json that belongs to them, or none"
            )


def _same(given: Any, expected: Any) -> bool:
    """Lists are those of JSON, words have no case and one synonym, and one entry may stand for one of every level."""
    if isinstance(expected, list | tuple):
        some = given if isinstance(given, list | tuple) else [given] * len(expected)
        return len(some) == len(expected) and all(map(_same, some, expected))
    words = [{"swish": "silu"}.get(v.lower(), v.lower()) if isinstance(v, str) else v for v in (given, expected)]
    return type(words[0]) is type(words[1]) and bool(words[0] == words[1])
