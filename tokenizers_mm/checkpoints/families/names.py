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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers_mm.weights import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

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
        pairs = {name: [pair.split("=") for pair in spelled.split()] for name, spelled in words.items()}
        spellings = {name: [(pair[0], pair[-1]) for pair in some] for name, some in pairs.items()}
        self._rules = [_Rule(line.split(), spellings) for line in table.splitlines() if line.strip()]

    def read(self, state: Mapping[str, Tensor], where: str = "file") -> dict[str, Tensor]:
        """The tensors under our names; keys that no rule fits pass under their own. Takes tensors of the meta device.

        Raises `CheckpointError` where two keys mean the same tensor, or part of a tensor is missing.
        """
        found, passed = self._found(state, 0)
        out = _Written(where)
        for key in passed:
            out.put(key, state[key])
        for key, (rule, values) in found.items():
            rule.put(out, rule.operated(state[key], 0), values, 1)
        return out.whole()

    def write(self, state: Mapping[str, Tensor], where: str = "file") -> dict[str, Tensor]:
        """The tensors under their names. `CheckpointError` for a key that no rule fits."""
        found, passed = self._found(state, 1)
        if passed:
            raise CheckpointError(f"{where}: {passed[0]}: there is no name for it in this layout; use our own (`save`)")
        out, rules = _Written(where), {}
        for key, (rule, values) in found.items():
            for goal in rule.put(out, state[key], values, 0):
                rules[goal] = rule
        return {key: rules[key].operated(value, 1) for key, value in out.whole().items()}

    def _found(
        self, keys: Mapping[str, Tensor], side: int
    ) -> tuple[dict[str, tuple[_Rule, dict[str, Any]]], list[str]]:
        """The rule of each key, with what its slots hold, and the keys without one."""
        found = {}
        for key in keys:
            fits = ((rule, rule.keys[side].match(key)) for rule in self._rules)
            found[key] = next(((rule, values) for rule, values in fits if values is not None), None)
        last: dict[str, int] = {}
        for rule, values in filter(None, found.values()):
            last |= {letter: max(values[letter], last.get(letter, 0)) for letter in rule.reversed}
        for rule, values in filter(None, found.values()):
            values |= {letter: last[letter] - values[letter] for letter in rule.reversed}
        return {key: hit for key, hit in found.items() if hit}, [key for key, hit in found.items() if not hit]


class _Written:
    """Tensors by key, each written once, or once in each of its parts."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.parts: dict[str, dict[int, Tensor]] = {}
        self.counts: dict[str, int] = {}

    def put(self, key: str, value: Tensor, part: int = 0, count: int = 1) -> None:
        """Keep one of `count` parts of a tensor."""
        parts = self.parts.setdefault(key, {})
        if part in parts:
            raise CheckpointError(f"{self.where}: two of its keys are {key} (in our names); give one tokenizer's file")
        parts[part], self.counts[key] = value, count

    def whole(self) -> dict[str, Tensor]:
        """Every tensor, put together from its parts."""
        import torch

        for key, parts in self.parts.items():
            if len(parts) < self.counts[key]:
                raise CheckpointError(f"{self.where}: {len(parts)} of {self.counts[key]} parts of {key}; copy it again")
        return {
            key: parts[0] if self.counts[key] == 1 else torch.cat([parts[i] for i in sorted(parts)])
            for key, parts in self.parts.items()
        }


class _Rule:
    def __init__(self, line: list[str], spellings: Mapping[str, list[tuple[str, str]]]) -> None:
        theirs, ours, *operation = line
        self.operation = _OPERATIONS[operation[0]] if operation else None
        self.keys = _Key(theirs, spellings, 0), _Key(ours, spellings, 1)
        self.reversed = re.findall(r"\{-([a-z])", theirs)
        alone = self.keys[0].words.keys() ^ self.keys[1].words.keys()
        self.several = next(iter(alone), "")
        self.order = list(dict.fromkeys(pair[1] for pair in spellings[self.several])) if alone else []

    def operated(self, value: Tensor, way: int) -> Tensor:
        return value if self.operation is None or value.ndim < 2 else self.operation[way](value)

    def put(self, out: _Written, value: Tensor, values: dict[str, Any], side: int) -> list[str]:
        """Write one tensor under the key of `side`, or the parts of it; gives these keys."""
        key, count = self.keys[side], len(self.order)
        if self.several not in key.words:
            part = self.order.index(values[self.several]) if self.several else 0
            goals = {key.filled(values): (value, part, max(count, 1))}
        else:
            cut = zip(self.order, value.chunk(count), strict=True)
            goals = {key.filled(values | {self.several: word}): (part, 0, 1) for word, part in cut}
        for goal, given in goals.items():
            out.put(goal, *given)
        return list(goals)


class _Key:
    """One side of a rule: a key with slots."""

    def __init__(self, text: str, spellings: Mapping[str, list[tuple[str, str]]], side: int) -> None:
        self.pieces = [piece for piece in _SLOT.split(text) if piece]
        self.words: dict[str, dict[str, str]] = {}  # of each word: their spelling or ours, on this side -> ours
        self.slots: list[tuple[str, int]] = []  # name and offset, in the order of the groups
        pattern = ""
        for piece in self.pieces:
            if piece == "*":
                self.slots.append((f"*{sum(name[0] == '*' for name, _ in self.slots)}", 0))
                pattern += "(.+)"
            elif piece[0] == "[":
                pattern += f"(?:{re.escape(piece[1:-1])})?"
            elif number := _NUMBER.fullmatch(piece):
                self.slots.append((number[1], int(number[2] or 0)))
                pattern += r"(\d+)"
            elif piece[0] == "{":
                name = piece[1:-1]
                pairs = spellings[name] if name in spellings else [(word, word) for word in name.split("|")]
                self.words[name] = {pair[side]: pair[1] for pair in pairs}
                self.slots.append((name, 0))
                pattern += f"({'|'.join(map(re.escape, sorted(self.words[name], key=len, reverse=True)))})"
            else:
                pattern += re.escape(piece)
        self.pattern = re.compile(pattern)

    def match(self, key: str) -> dict[str, Any] | None:
        """What the slots hold: numbers without their offset, words in our spelling."""
        match = self.pattern.fullmatch(key)
        if match is None:
            return None
        values: dict[str, Any] = {}
        for (name, offset), text in zip(self.slots, match.groups(), strict=True):
            if name in self.words:
                values[name] = self.words[name][text]
            else:
                values[name] = text if name[0] == "*" else int(text) - offset
        return values

    def filled(self, values: Mapping[str, Any]) -> str:
        """The key whose slots hold these."""
        slots, out = iter(self.slots), ""
        for piece in self.pieces:
            if piece != "*" and piece[0] not in "{[":
                out += piece
            elif piece[0] == "[":
                out += piece[1:-1]
            else:
                name, offset = next(slots)
                value = values[name]
                if name in self.words:
                    value = next(here for here, ours in self.words[name].items() if ours == value)
                out += str(value + offset) if isinstance(value, int) else value
        return out
