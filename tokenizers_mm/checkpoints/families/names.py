"""Key names of a public file and ours: one table, read both ways.

A table has a rule a line: their key, our key and, where shapes differ, an operation. The first rule that fits is used.

    encoder.down_blocks.{i}.resnets.{j}.{block}.*     encoder.down.{i}.block.{j}.{block}.*
    decoder.up_blocks.{-i}.attentions.{j}.{qkv}.*     decoder.up.{i}.attn.{j}.{qkv}.*          linear
    {encoder|decoder}.mid.{j}.*                       {encoder|decoder}.mid.block_{j+1}.*
    *.qkv.*                                           *.{third}.*

`*` stands for any text; `{i}`, one letter, for a number, `{i+1}` for the next one, and `{-i}` in their key for the
number counted from the other end; `{a|b}` for one of these words; `{word}`, a longer name, for one of the words given
under that name, each as "same" or as "theirs=ours". Where several of theirs are one of ours, all are read and the first
is written. `[text]` in their key may be missing, and is written.

A word that only one of the two keys has means several tensors on that side and one on the other: the several in the
order of the words, along the first axis (fused queries, keys and values).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from tokenizers_mm.weights import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Spellings: TypeAlias = Mapping[str, list[tuple[str, str]]]  # of each word: (theirs, ours)
_SLOT = re.compile(r"(\{[^}]*\}|\*|\[[^]]*\])")
_NUMBER = re.compile(r"\{-?([a-z])(?:\+(\d+))?\}")

# What a rule may do with a tensor of two axes or more, on the way to ours and on the way back.
_OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # A matrix there, a convolution with a 1x1 kernel here; "pointwise" is the opposite.
    "linear": (lambda value: value.reshape(*value.shape[:2], 1, 1), lambda value: value.flatten(1)),
    "pointwise": (lambda value: value.flatten(1), lambda value: value.reshape(*value.shape, 1, 1)),
    # A number per channel, with an axis for time there or not.
    "gain": (lambda value: value.reshape(-1, 1, 1), lambda value: value),
    # A kernel over time, rows and columns there, of which a still image meets the last tap: there is no way back.
    "last_tap": (lambda value: value[:, :, -1] if value.ndim == 5 else value, lambda value: value),
}


class Names:
    """A table of names. `read` gives tensors under our names, `write` gives them back; both give views where they can.

    table  see the head of this file; words  spellings of the words in it, with spaces between
    """

    def __init__(self, table: str, **words: str) -> None:
        spellings = {name: [(p.split("=")[0], p.split("=")[-1]) for p in some.split()] for name, some in words.items()}
        self._rules = [_Rule(line.split(), spellings) for line in table.splitlines() if line.strip()]

    def read(self, state: Mapping[str, Tensor], where: str = "file") -> dict[str, Tensor]:
        """The tensors under our names; keys that no rule fits pass under their own. Takes tensors of the meta device.

        Raises `CheckpointError` where two keys mean the same tensor, or part of a tensor is missing.
        """
        return self._renamed(state, 0, where)

    def write(self, state: Mapping[str, Tensor], where: str = "file") -> dict[str, Tensor]:
        """The tensors under their names. `CheckpointError` for a key that no rule fits, too."""
        return self._renamed(state, 1, where)

    def _renamed(self, state: Mapping[str, Tensor], side: int, where: str) -> dict[str, Tensor]:
        """From the names of one side to those of the other: each key is read once, and each goal written once."""
        parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
        rules: dict[str, _Rule] = {}
        for key, (rule, values) in self._found(state, side, where).items():
            for goal, part, value in rule.cut(state[key], values, side):
                if part in parts[goal]:
                    raise CheckpointError(f"{where}: {key} and another key mean {goal}; give one tokenizer's file")
                parts[goal][part], rules[goal] = value, rule
        return {goal: rules[goal].whole(some, side, f"{where}: {goal}") for goal, some in parts.items()}

    def _found(self, state: Mapping[str, Tensor], side: int, where: str) -> dict[str, tuple[_Rule, dict[str, Any]]]:
        """The rule of each key, with what its slots hold."""
        found: dict[str, tuple[_Rule, dict[str, Any]]] = {}
        last: dict[str, int] = {}
        for key in state:
            fits = ((rule, rule.keys[side].match(key)) for rule in [*self._rules, _AS_IT_IS][: -side or None])
            rule, values = next(((rule, values) for rule, values in fits if values is not None), (None, None))
            if rule is None or values is None:
                raise CheckpointError(f"{where}: {key}: there is no name for it in this layout; use our own (`save`)")
            found[key] = rule, values
            last |= {letter: max(values[letter], last.get(letter, 0)) for letter in rule.reversed}
        for rule, values in found.values():
            values |= {letter: last[letter] - values[letter] for letter in rule.reversed}
        return found


class _Rule:
    """A line of a table."""

    def __init__(self, line: list[str], spellings: Spellings) -> None:
        theirs, ours, *operation = line
        self.operation = _OPERATIONS[operation[0]] if operation else None
        self.keys = _Key(theirs, spellings, 0), _Key(ours, spellings, 1)
        self.reversed = re.findall(r"\{-([a-z])", theirs)
        self.several = next(iter(self.keys[0].words ^ self.keys[1].words), "")
        self.order = list(dict.fromkeys(pair[1] for pair in spellings[self.several])) if self.several else [""]

    def cut(self, value: Tensor, values: dict[str, Any], side: int) -> list[tuple[str, int, Tensor]]:
        """Keys on the other side of one on this side, with the index of the part of their tensor, and the part."""
        goal, value = self.keys[1 - side], value if side else self._operated(value, 0)
        if self.several in goal.words:
            cut = zip(self.order, value.chunk(len(self.order)), strict=True)
            return [(goal.filled(values | {self.several: word}), 0, part) for word, part in cut]
        return [(goal.filled(values), self.order.index(values.get(self.several, "")), value)]

    def whole(self, parts: Mapping[int, Tensor], side: int, where: str) -> Tensor:
        """The tensor of these parts, on the other side."""
        count = 1 if self.several in self.keys[1 - side].words else len(self.order)
        if len(parts) < count:
            raise CheckpointError(f"{where}: only {len(parts)} of its {count} parts are there; copy the file again")
        if count > 1:
            import torch

            parts = {0: torch.cat([parts[i] for i in range(count)])}
        return self._operated(parts[0], 1) if side else parts[0]

    def _operated(self, value: Tensor, way: int) -> Tensor:
        return value if self.operation is None or value.ndim < 2 else self.operation[way](value)


class _Slot(NamedTuple):
    """A number with an offset, a word with the spellings of this side -> ours, or any text."""

    name: str
    offset: int | None = None
    words: Mapping[str, str] | None = None

    def value(self, text: str) -> Any:
        return int(text) - self.offset if self.offset is not None else self.words[text] if self.words else text

    def text(self, value: Any) -> str:
        if self.offset is not None:
            return str(value + self.offset)
        return next(here for here, ours in self.words.items() if ours == value) if self.words else value


class _Key:
    """One side of a rule: a key with slots."""

    def __init__(self, text: str, spellings: Spellings, side: int) -> None:
        self.slots: list[_Slot] = []
        self.form = ""  # the key with a %s for each slot
        pattern = ""
        for piece in filter(None, _SLOT.split(text)):
            if piece[0] == "[":
                pattern, self.form = f"{pattern}(?:{re.escape(piece[1:-1])})?", self.form + piece[1:-1]
            elif piece[0] in "{*":
                self.slots.append(self._slot(piece, spellings, side))
                words = sorted(self.slots[-1].words or (), key=len, reverse=True)
                group = "|".join(map(re.escape, words)) if words else ".+" if piece == "*" else r"\d+"
                pattern, self.form = f"{pattern}({group})", self.form + "%s"
            else:
                pattern, self.form = pattern + re.escape(piece), self.form + piece
        self.pattern = re.compile(pattern)
        self.words = {slot.name for slot in self.slots if slot.words}

    def _slot(self, piece: str, spellings: Spellings, side: int) -> _Slot:
        if piece == "*":
            return _Slot(f"*{len([slot for slot in self.slots if slot.name[0] == '*'])}")
        if number := _NUMBER.fullmatch(piece):
            return _Slot(number[1], offset=int(number[2] or 0))
        name = piece[1:-1]
        pairs = spellings[name] if name in spellings else [(word, word) for word in name.split("|")]
        return _Slot(name, words={pair[side]: pair[1] for pair in pairs})

    def match(self, key: str) -> dict[str, Any] | None:
        """What the slots hold: numbers without their offset, words in our spelling."""
        match = self.pattern.fullmatch(key)
        if match is None:
            return None
        return {slot.name: slot.value(text) for slot, text in zip(self.slots, match.groups(), strict=True)}

    def filled(self, values: Mapping[str, Any]) -> str:
        """The key whose slots hold these."""
        return self.form % tuple(slot.text(values[slot.name]) for slot in self.slots)


_AS_IT_IS = _Rule(["*", "*"], {})
