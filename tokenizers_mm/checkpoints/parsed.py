"""A file understood: what its tensors are, and how that is found out once reader and family are known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from tokenizers_mm.checkpoints.families import Contents, Family, Naming, Reader, laid_over, option
from tokenizers_mm.weights import CheckpointError

# Images of other than these channels are read only where a family or the caller says so: a file of 48 channels in front
# of its first layer has folded or transformed its pixels in a way that no shape shows.
_IMAGE_CHANNELS = frozenset({1, 3, 4})


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A tokenizer's file, ready to be put together.

    family      what it is; rivals  families that it could be as well, with another scale of latents or other codes
    options     of `AutoencoderConfig`, as plain data
    state       the tokenizer's tensors under our names
    statistics  mean and deviation of the latents, None where nothing is known
    ignored     patterns of keys that the tokenizer does not need
    where       what was read, and as which family: it starts every error message
    """

    family: Family
    options: dict[str, Any]
    state: dict[str, Tensor]
    statistics: tuple[Any, Any] | None
    ignored: tuple[str, ...]
    where: str
    rivals: tuple[Family, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Tensors as one reader sees them, before a family is chosen.

    options  of `AutoencoderConfig`, as far as the file shows them
    """

    reader: Reader
    naming: Naming
    given: Contents

    @cached_property
    def options(self) -> dict[str, Any]:
        """Raises `CheckpointError` where tensors are missing or contradict each other."""
        return self.reader.options(self.given)

    def misfits(self, row: Family, told: Mapping[str, Any], prefix: str = "") -> list[str]:
        """What keeps this out of a family, in words; empty where it fits.

        told    options that the caller states, which therefore are as they should be
        prefix  what precedes the keys in the file
        """
        found = []
        if row.namings and self.naming.name not in row.namings:
            found.append(f"names are those of {self.naming.name}, not of {' or '.join(row.namings)}")
        if row.prefix and not prefix.endswith(row.prefix):
            found.append(f"keys start with {prefix!r}, not {row.prefix!r}")
        for name, value in {"net.image_channels": _IMAGE_CHANNELS, **self.reader.needs, **row.needs}.items():
            here, allowed = option(self.options, name), value if isinstance(value, frozenset) else {value}
            fits = isinstance(here, value) if isinstance(value, type) else here in allowed
            if not fits and option(told, name) is None:
                found.append(f"{name} is {here}, not {' or '.join(sorted(map(str, allowed)))}")
        return found

    def parsed(
        self, row: Family, config: Mapping[str, Any], *, beside: Iterable[str] = (), prefix: str = "", **others: Any
    ) -> Parsed:
        """What this is as one family.

        config  options that the caller states; beside, prefix  other keys of the file, and what precedes these there
        """
        options = laid_over({"image_size": (256, 256), **self.options}, row.config)
        options |= {"image_size": self.options.get("image_size", options["image_size"])}
        state = dict(self.given.state)
        unused = [key for key in state if any(re.fullmatch(pattern, key) for pattern in self.reader.dropped)]
        for key in unused:
            del state[key]
        parts = [key for key in unused if key.startswith(("encoder.", "decoder."))]
        outside = [*beside, *(prefix + key for key in unused if key not in parts)]
        return Parsed(
            family=row,
            options=laid_over(options, config, keep_kinds=True),
            state=state,
            statistics=self.reader.statistics(self.given) or row.statistics,
            ignored=(*_counted(map(_outermost, outside)), *_counted(f"*.{key.split('.')[-2]}.*" for key in parts)),
            where=f"{self.given.where}, read as {row.name} (family= or config= may say otherwise)",
            **others,
        )


def read_by(
    reader: Reader, naming: Naming, state: Mapping[str, Tensor], about: Mapping[str, Any], where: str
) -> Reading:
    """The tensors of a file in this naming, as this reader sees them."""
    if reader.config_json and not about:
        raise CheckpointError(f"{where}: only the config.json beside it says what it is; give the folder with both")
    ours = naming.table(state).read(state, where)
    return Reading(reader, naming, Contents(keys=list(state), state=ours, about=about, where=where))


def _outermost(key: str) -> str:
    return key.split(".", 1)[0] + ".*" if "." in key else key


def _counted(patterns: Iterable[str]) -> tuple[str, ...]:
    """Patterns once each, with counts: a language model has thousands of keys."""
    return tuple(f"{pattern} ({count})" for pattern, count in Counter(patterns).items())
