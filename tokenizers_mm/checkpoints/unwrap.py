"""Find the tokenizer in what a file holds: under names of wrappers, behind prefixes, as moving averages or not.

A training checkpoint wraps weights in dictionaries (`state_dict`, `model`, `ema`, `trainer.unitok`), a language model's
file holds its tokenizer behind a prefix (`gen_vision_model.`), and Lightning keeps moving averages beside the weights
under names without dots (`model_ema.encoderconv_inweight`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

_SHADOW = "model_ema."
_DEEPEST = 4


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One set of weights in a file.

    wrapper  names of the dictionaries around it, outermost first
    prefix   what its keys start with in the file
    state    tensors, keys without the prefix
    beside   other keys of the same dictionary, in full
    ema      whether these are moving averages of the trained weights
    """

    wrapper: tuple[str, ...]
    prefix: str
    state: dict[str, Tensor]
    beside: tuple[str, ...]
    ema: bool

    @property
    def place(self) -> str:
        """Where in the file it stands, for messages."""
        return ".".join([*self.wrapper, self.prefix.rstrip(".")]).strip(".") or "top level"


def candidates(tree: Mapping[str, Any], first: Collection[str]) -> list[Candidate]:
    """Every set of weights in the file that has an encoder's first layer, moving averages as sets of their own.

    first  names that the first layer may have; what stands before them is a prefix
    """
    found = []
    layer = re.compile(rf"((?:.*?\.)?)(?:{'|'.join(map(re.escape, sorted(first)))})\.")
    for wrapper, state in _dictionaries(tree, ()):
        for prefix in dict.fromkeys(match[1] for match in map(layer.match, state) if match):
            inside = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            beside = tuple(key for key in state if not key.startswith(prefix))
            ema = any("ema" in name.lower().split("_") for name in wrapper)
            plain = Candidate(wrapper=wrapper, prefix=prefix, state=inside, beside=beside, ema=ema)
            found += _with_shadow(plain)
    return found


def preferred(found: list[Candidate], ema: bool) -> list[Candidate]:
    """Moving averages first, or last; otherwise as they stand in the file."""
    return sorted(found, key=lambda candidate: candidate.ema != ema)


def _dictionaries(
    tree: Mapping[str, Any], wrapper: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Nested dictionaries that hold tensors, outermost first."""
    tensors = {key: value for key, value in tree.items() if isinstance(value, Tensor)}
    if tensors:
        yield wrapper, tensors
    if len(wrapper) < _DEEPEST:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from _dictionaries(value, (*wrapper, str(key)))


def _with_shadow(plain: Candidate) -> list[Candidate]:
    """The weights, and the moving averages that Lightning keeps beside them."""
    shadow = {key.removeprefix(_SHADOW): key for key in plain.state if key.startswith(_SHADOW)}
    state = {key: value for key, value in plain.state.items() if not key.startswith(_SHADOW)}
    averaged = {key: plain.state[shadow[name]] for key in state if (name := key.replace(".", "")) in shadow}
    kept = replace(plain, state=state, beside=(*plain.beside, *shadow.values()))
    if not averaged:
        return [kept]
    return [kept, replace(kept, state=state | averaged, ema=True)]
