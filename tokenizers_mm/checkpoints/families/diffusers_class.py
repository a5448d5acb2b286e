"""Classes of diffusers: what their config.json says of our tokenizers, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenizers_mm.weights import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizers_mm.models import Autoencoder, AutoencoderConfig


Need: TypeAlias = Callable[..., None]


def needs(refuse: Callable[[str], Exception]) -> Need:
    """A function of (name, value, *values that a class of diffusers has), which raises `refuse(reason)` for others."""

    def need(name: str, found: Any, *allowed: Any) -> None:
        if found not in allowed:
            raise refuse(f"{name}={found!r} is none of {' or '.join(map(repr, allowed))}, which diffusers has")

    return need


@dataclass(frozen=True, kw_only=True)
class DiffusersClass:
    """A class of diffusers: which of our tokenizers are its objects, and what its config.json says of them.

    when      entries of config.json that tell it from another of the same name, which has fewer
    family    the row that its files are of, unless another has the published scale and fits
    describe  what config.json says of options of ours; raises, by `need`, for those that it has no word for. None
              where the reader compares its config.json itself
    idle      entries of config.json that change nothing here, or that the reader uses itself
    net, bottlenecks, suits  which tokenizers are written as this class; none where `tensors` is None
    tensors   what else is written: entries of config.json, and tensors under their names, of a tokenizer
    """

    name: str
    when: Mapping[str, Any] = field(default_factory=dict)
    family: str
    describe: Callable[[AutoencoderConfig, Need], dict[str, Any]] | None = None
    idle: Collection[str] = ()
    net: str = "conv"
    bottlenecks: tuple[str, ...] = ()
    suits: Callable[[AutoencoderConfig], bool] = lambda config: True
    tensors: Callable[[Autoencoder, Need], tuple[dict[str, Any], dict[str, Tensor]]] | None = None

    def is_class_of(self, about: Mapping[str, Any]) -> bool:
        """Whether this config.json is of this class."""
        return about.get("_class_name") == self.name and all(about.get(key) == self.when[key] for key in self.when)


def agree(about: Mapping[str, Any], entries: Mapping[str, Any], where: str) -> None:
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
