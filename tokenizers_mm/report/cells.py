"""Cells of a table: texts, numbers, outcomes, shares with a bar, and any of them with a note."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Cell", "Share", "WithNote", "marked", "prose", "table"]


@dataclass(frozen=True)
class Share:
    """A table cell with a bar: a share in 0..1, shown as a percentage, and the target to reach as a tick."""

    value: float
    target: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a share."""
        if not 0 <= self.value <= 1:
            raise ValueError(f"value={self.value}: a share lies in 0..1")


@dataclass(frozen=True)
class WithNote:
    """A table cell that says more where the pointer rests; a keyboard or paper has no pointer, so say it below too."""

    cell: str | int | float
    note: str


_Plain = str | int | float | bool | Share | None
Cell = _Plain | WithNote


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A `table` element; see `Page.table`."""
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row {list(row)} has {len(row)} cells for {len(columns)} columns")
    plain = [[cell.cell if isinstance(cell, WithNote) else cell for cell in row] for row in rows]
    kinds = [' class="number"' if _numeric([row[i] for row in plain]) else "" for i in range(len(columns))]
    decimals = [_decimals([row[i] for row in plain]) for i in range(len(columns))]
    head = "".join(f"<th{kind}>{prose(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kinds[i]}>{_cell(cell, decimals[i]) if cell is not None else '–' * bool(kinds[i])}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def prose(text: str) -> str:
    """Escaped text in which `backticks` mark code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def marked(mark: bool | None, words: tuple[str, str] = ("", "")) -> str:
    """A tick or a cross with its word, or nothing."""
    if mark is None:
        return ""
    sign, kind, word = ("✓", "yes", words[0]) if mark else ("✗", "no", words[1])
    label = "" if word else f' role="img" aria-label="{"right" if mark else "wrong"}"'
    return f'<span class="mark {kind}"{label}>{sign} {word}</span> '


def _cell(cell: str | int | float | bool | Share | WithNote, decimals: int) -> str:
    if isinstance(cell, WithNote):
        return f'<span title="{escape(cell.note)}">{_cell(cell.cell, decimals)}</span>'
    if isinstance(cell, bool):
        return marked(cell, ("reached", "missed"))
    if isinstance(cell, Share):
        tick = "" if cell.target is None else f'<u style="left:{100 * cell.target:.1f}%"></u>'
        bar = f'<span class="bar"><i style="width:{100 * cell.value:.1f}%"></i>{tick}</span>'
        return f'<span class="share"><span>{100 * cell.value:.1f} %</span>{bar}</span>'
    if isinstance(cell, float):
        return f"{cell:,.{decimals}f}"
    return f"{cell:,}" if isinstance(cell, int) else prose(cell)


def _decimals(cells: Sequence[_Plain]) -> int:
    """Decimals of a column: as many as its floats need for four significant digits, at most three."""
    texts = [f"{cell:.4g}" for cell in cells if isinstance(cell, float)]
    return min(3, max((len(text.partition(".")[2]) for text in texts if "e" not in text), default=0))


def _numeric(cells: Sequence[_Plain]) -> bool:
    """True where a column reads as numbers: right-aligned then."""
    numbers = [c for c in cells if c is not None]
    return bool(numbers) and all(
        not isinstance(c, bool) and (isinstance(c, (int, float, Share)) or bool(re.match(r"[-+±≤≥<>~]?\s?[\d.]", c)))
        for c in numbers
    )
