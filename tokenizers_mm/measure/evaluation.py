"""All figures of one tokenizer on one set of images, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table

from tokenizers_mm.measure.information import CodeUsage
from tokenizers_mm.measure.protocol import Measurement

__all__ = ["Evaluation"]


@dataclass(frozen=True)
class Evaluation:
    """All figures of one tokenizer on one set of images.

    codes    the per-stream detail of discrete tokens
    domains  the same figures on other sets, each measured apart (text, faces)
    left_out what was wrong with each image that was to be measured and could not be read, and with those of other
             purposes: "images", "train", "probe", ...
    """

    measurements: tuple[Measurement, ...]
    codes: CodeUsage | None = None
    domains: Mapping[str, Evaluation] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Measurement:
        """The measurement of that name; `KeyError` lists those there are."""
        for measurement in self.measurements:
            if measurement.name == name:
                return measurement
        raise KeyError(f"no measurement {name!r}; there are {[m.name for m in self.measurements]}")

    def plus(self, measurements: Iterable[Measurement]) -> Evaluation:
        """With more figures after these."""
        return replace(self, measurements=(*self.measurements, *measurements))

    def to_json(self) -> str:
        """JSON with a full protocol record for every figure."""
        return json.dumps(self.record(), indent=2)

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        record: dict[str, Any] = {
            "images": {"measured": self._images, "left_out": len(self.left_out.get("images", ()))},
            "measurements": [measurement.record() for measurement in self.measurements],
        }
        if self.left_out:
            record["left_out"] = {purpose: list(errors) for purpose, errors in self.left_out.items()}
        if self.codes is not None:
            record["codes"] = {
                "vocabulary": self.codes.spec.codes,
                "tokens": self.codes.tokens,
                "used": self.codes.used,
                "entropy_bits": self.codes.entropy,
            }
        if self.domains:
            record["domains"] = {name: domain.record() for name, domain in self.domains.items()}
        return record

    @property
    def left_out_text(self) -> tuple[str, ...]:
        """A line for every purpose for which images could not be read."""
        return tuple(
            f"{len(errors)} {'more' if purpose == 'images' else f'images ({purpose})'} left out: cannot be read"
            for purpose, errors in self.left_out.items()
        )

    @property
    def _images(self) -> int:
        return self.measurements[0].protocol.samples

    def table(self, title: str = "") -> Table:
        """Rich table; notes and protocol stand below it."""
        lines = [
            f"{self._images} images: {self.measurements[0].protocol.reference}",
            *self.left_out_text,
            *sorted({m.note for m in self.measurements} - {""}),
        ]
        table = Table(title=title or None, caption="\n".join(lines), caption_justify="left")
        table.add_column("Measure")
        table.add_column("Value", justify="right")
        table.add_column("Unit")
        for measurement in self.measurements:
            table.add_row(measurement.name, measurement.text, measurement.unit)
        return table
