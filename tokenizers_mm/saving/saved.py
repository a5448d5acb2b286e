"""What can be saved: the members that a tokenizer has for it. Nothing in this room knows any class that has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol, TypeGuard

from torch import Tensor

from tokenizers_mm.api import Tokenizer
from tokenizers_mm.weights import CheckpointError, Provenance

__all__ = ["CardFacts", "CardSource", "Saved", "check_saved", "describe", "is_saved"]


@dataclass(frozen=True, kw_only=True)
class CardSource:
    """Where the weights of a tokenizer, or of a part of it, come from.

    part  which one, as headings go on: " of the semantic half"; nothing for the whole
    made  a sentence that stands where there is no provenance
    """

    provenance: Provenance | None
    made: str = "Trained with tokenizers-mm."
    part: str = ""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a class says of its tokenizer on the model card, beside what follows from the token spec.

    title     heading, one line
    tag       for the hub: what its tokens are made by
    facts     rows of the table, after those of the spec
    sources   of the weights, one for each part that has its own
    decodes   whether images come back;  reads_texts  whether there is a text encoder
    sections  further Markdown, each with its heading
    """

    title: str
    tag: str
    facts: Mapping[str, str]
    sources: tuple[CardSource, ...]
    decodes: bool = True
    reads_texts: bool = False
    sections: tuple[str, ...] = field(default=())


class Saved(Tokenizer, Protocol):
    """A `Tokenizer` that is written to a folder and made again from it.

    kind        name of its class in config.json
    provenance  where public weights come from, None for others; no part of its identity
    """

    kind: ClassVar[str]
    provenance: Provenance | None

    def options(self) -> dict[str, Any]:
        """JSON-able; `rebuild` makes the tokenizer again from these and from its state dict."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON-able: what of its kind and options makes it this tokenizer and no other, for fingerprints."""
        ...

    def card(self) -> CardFacts:
        """What stands on its model card."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        ...

    @classmethod
    def rebuild(cls, options: Any, state: Mapping[str, Tensor], *, where: str, weights: str) -> Saved:
        """The tokenizer that `options` and `state_dict` gave, around these very tensors, in eval mode.

        where, weights  what options and tensors came from; errors start with them

        Raises `CheckpointError` or `ConfigError` naming what does not fit.
        """
        ...


_OWN = ("kind", "provenance", "options", "identity", "card", "rebuild")


def is_saved(value: object) -> TypeGuard[Saved]:
    """Whether the value's class has what a saved tokenizer needs; an object that forwards to one has it not."""
    return all(hasattr(type(value), name) for name in _OWN)


def check_saved(value: object) -> Saved:
    """The value itself; `CheckpointError` unless it can be saved."""
    if not is_saved(value):
        raise CheckpointError(
            f"{type(value).__name__}: cannot be saved, its class lacks "
            f"{', '.join(name for name in _OWN if not hasattr(type(value), name))} (tokenizers_mm/saving/saved.py); "
            "give it these members, or write what it needs yourself"
        )
    return value


def describe(tokenizer: object) -> dict[str, Any]:
    """JSON-able: kind, options, and provenance where there is any; `CheckpointError` for what cannot be saved."""
    saved = check_saved(tokenizer)
    found: dict[str, Any] = {"kind": saved.kind, "model": saved.options()}
    if saved.provenance is not None:
        found["origin"] = asdict(saved.provenance)
    return found
