"""What a row of the table of public tokenizers says, and how well a file fits it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers_mm.checkpoints.structure import Facts


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of public checkpoints.

    layouts     naming schemes its files come in, see `layouts`; "body" for those of `bodies`
    quantizer   what the bottleneck must be, see `Facts`
    needs       structure it must have: names of `Facts` or of `ConvConfig` options, and their values
    prefix      what its keys must start with, where the tokenizer lives in another model's file
    marks       patterns of keys (in full) that only this family's files hold; a file needs none of them
    typical     structure of the published files; a file that has it fits better
    proof       whether recognition needs the first mark or the typical structure: what it adds would be wrong elsewhere
    bottleneck  options of the quantizer beside its size; config  other options of the tokenizer
    scale, shift  published latents are (z - shift) * scale; None where nothing was published
    ema         whether the authors' own loader prefers moving averages where a file holds both
    code_licence, weights_licence, restricted  licences as far as stated, and whether they limit use
    parameters  of encoder and decoder, in millions, as published
    """

    name: str
    title: str
    paper: str
    layouts: tuple[str, ...]
    quantizer: str
    needs: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    marks: tuple[str, ...] = ()
    typical: Mapping[str, Any] = field(default_factory=dict)
    proof: bool = False
    bottleneck: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    scale: float | None = None
    shift: float = 0.0
    ema: bool = True
    code_licence: str = "not stated"
    weights_licence: str = "not stated"
    restricted: bool = False
    parameters: float | None = None

    def misfits(self, layout: str, facts: Facts, prefix: str) -> list[str]:
        """What keeps a file out of this family, in words; empty where it fits."""
        found = []
        if layout not in self.layouts:
            found.append(f"names are those of {layout}, not of {' or '.join(self.layouts)}")
        if facts.quantizer != self.quantizer:
            found.append(f"its bottleneck is {facts.quantizer}, not {self.quantizer}")
        if self.prefix and not prefix.endswith(self.prefix):
            found.append(f"keys start with {prefix!r}, not {self.prefix!r}")
        for name, value in self.needs.items():
            here = structure(facts, name)
            if here != value:
                found.append(f"{name} is {here}, not {value}")
        return found

    def likeness(self, facts: Facts, keys: Collection[str]) -> tuple[int, int]:
        """How well a file fits: marks found, then typical structure found."""
        marks = sum(any(re.match(mark, key) for key in keys) for mark in self.marks)
        return marks, sum(structure(facts, name) == value for name, value in self.typical.items())

    def is_proved(self, facts: Facts, keys: Collection[str]) -> bool:
        """Whether a file shows what this family asks for, where it asks for something."""
        marked = any(re.match(self.marks[0], key) for key in keys) if self.marks else False
        return not self.proof or marked or self.is_typical(facts)

    def is_typical(self, facts: Facts) -> bool:
        """Whether a file has the structure of the published ones."""
        return all(structure(facts, name) == value for name, value in self.typical.items())


def structure(facts: Facts, name: str) -> Any:
    """A fact or an option of the net, in the form the table writes it."""
    value = facts.net[name] if name in facts.net else getattr(facts, name)
    if isinstance(value, list):
        value = tuple(int(v) if float(v).is_integer() else v for v in value)
    return value
