"""Figures with targets as plain data: every number, whether its target was reached, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any, Self

__all__ = ["Example", "Figure", "Findings", "merge"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number.

    unit               "share" is a part of 1; other units are printed as they are
    protocol           name of the record in `Findings.protocols` that says how it was made
    at_least, at_most  the target; neither where the figure is only reported
    note               what a reader must know to trust it
    """

    value: float
    unit: str
    protocol: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None where there is none."""
        if self.at_least is None and self.at_most is None:
            return None
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= self.value <= high


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture of a gallery: its caption, what was read from it, and whether the two agree."""

    caption: str
    read: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was measured, JSON-able; pictures lie beside it as PNG files.

    figures      by path, e.g. "photos/china/fsq/psnr"
    protocols    how figures were made, by the name that `Figure.protocol` holds
    examples     galleries by the name of their picture: one below the other, all of one size
    seconds      time of every stage
    environment  versions, processor cores, date
    """

    figures: Mapping[str, Figure] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, path: str) -> Figure:
        if path not in self.figures:
            raise KeyError(f"no figure {path!r}; there are {sorted(self.figures)}")
        return self.figures[path]

    def value(self, path: str) -> float:
        """The number of a figure."""
        return self[path].value

    def targets(self) -> tuple[int, int]:
        """How many targets were reached, of how many; controls, which must fail to be good, are not among them."""
        outcomes = [figure.reached for path, figure in self.figures.items() if not path.startswith("control/")]
        return sum(outcome is True for outcome in outcomes), sum(outcome is not None for outcome in outcomes)

    def to_json(self) -> str:
        """JSON with `reached` spelled out for every figure; `from_json` is its inverse."""
        record = asdict(self)
        for path, figure in self.figures.items():
            record["figures"][path]["reached"] = figure.reached
        return json.dumps(record, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; raises `ValueError` on anything else."""
        try:
            record = json.loads(text)
            figures = {
                path: Figure(**{name: value for name, value in fields.items() if name != "reached"})
                for path, fields in record.pop("figures").items()
            }
            examples = {name: [Example(**fields) for fields in rows] for name, rows in record.pop("examples").items()}
            return cls(figures=figures, examples=examples, **record)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"findings {text[:60]!r}: expected what Findings.to_json wrote ({error})") from error


def merge(parts: Iterable[Findings]) -> Findings:
    """One record of several; a path or name that two of them use is an error of ours."""
    return reduce(_join, parts, Findings())


def _join(a: Findings, b: Findings) -> Findings:
    fields: dict[str, Any] = {}
    for name in Findings.__dataclass_fields__:
        ours, theirs = getattr(a, name), getattr(b, name)
        assert not set(ours) & set(theirs), f"{name}: measured twice: {set(ours) & set(theirs)}"
        fields[name] = {**ours, **theirs}
    return Findings(**fields)
