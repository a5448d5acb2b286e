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

from tokenizers_mm.checkpoints.families.diffusers_class import DiffusersClass
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.weights import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
About: TypeAlias = Mapping[str, Any]  # a config.json; empty where there is none
Statistics: TypeAlias = "tuple[Tensor | list[float] | float, Tensor | list[float] | float] | None"


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

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor that has to be there."""
        if key not in self.shapes:
            raise CheckpointError(f"{self.where}: no {key} (in our names): not a whole autoencoder; copy it again")
        return self.shapes[key]

    def numbers(self, pattern: str) -> list[int]:
        """The numbers that the group of a pattern matches at the head of our names, in order."""
        matches = map(re.compile(pattern).match, self.shapes)
        return sorted({int(match[1]) for match in matches if match})


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: a published tokenizer, and what no shape of its files shows.

    namings     of its reader, that its files come in; empty for all
    needs       options that its files must have, by dotted names: a value, a frozenset of them, or a type
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
        return [pattern for pattern in self.signature if not any(map(re.compile(pattern).fullmatch, keys))]

    def table(self, keys: Collection[str]) -> Names:
        """The table for a file of these keys."""
        return self.names if isinstance(self.names, Names) else self.names(keys)


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
