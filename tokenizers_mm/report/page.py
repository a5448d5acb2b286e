"""One self-contained HTML page: plain data in, a page out that needs nothing but itself.

Pictures are inlined, charts are SVG, style and script sit beside this file; nothing is loaded from anywhere, and a
content security policy tells the browser so. All text is escaped; `backticks` mark code.

Pictures are uint8 arrays [H, W, 3].
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Self

from tokenizers_mm.report.chart import Points, line_chart, scatter_chart
from tokenizers_mm.report.picture import Pixels, false_colour, picture

__all__ = ["Cell", "WithNote", "Page", "Share", "false_colour"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_ARROW = (
    '<svg class="arrow" viewBox="0 0 26 16" aria-hidden="true"><path d="M1 8h23M17 1l7 7-7 7" fill="none" '
    'stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"/></svg>'
)


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


class Page:
    """Collects blocks from top to bottom; every method returns the page, `write` ends it.

    title  one statement;  summary  what it means, in two or three sentences;  eyebrow  a short line above
    """

    def __init__(self, title: str, summary: str, *, eyebrow: str = "") -> None:
        self.title, self.summary, self.eyebrow = title, summary, eyebrow
        self._head: list[str] = []
        self._body: list[str] = []
        self._sections: list[str] = []
        self._footer: list[str] = []

    def strip(self, stages: Sequence[tuple[Pixels, str, str]]) -> Self:
        """The path of one image, left to right under the title: (picture, name, detail) for each stage."""
        if not stages:
            raise ValueError("strip has no stages: expected at least one (picture, name, detail)")
        height, width = stages[0][0].shape[:2]
        figures = [
            f'<figure><div class="frame">{picture(pixels, f"{name}: {detail}")}</div>'
            f"<figcaption><b>{_text(name)}</b><span>{_text(detail)}</span></figcaption></figure>"
            for pixels, name, detail in stages
        ]
        return self._add(f'<div class="strip" style="--ratio:{width} / {height}">{_ARROW.join(figures)}</div>')

    def facts(self, facts: Iterable[tuple[str, str]]) -> Self:
        """Headline figures: (number, what it is). A unit after a space is set small."""
        items = []
        for number, label in facts:
            value, _, unit = number.partition(" ")
            small = f"<small>{_text(unit)}</small>" if unit else ""
            items.append(f"<div><dt>{_text(label)}</dt><dd>{_text(value)}{small}</dd></div>")
        return self._add(f'<dl class="facts">{"".join(items)}</dl>')

    def section(self, title: str, text: str = "") -> Self:
        """Start a numbered section; it also appears in the list at the top."""
        self._sections.append(title)
        number = len(self._sections)
        closing = "</section>" if number > 1 else ""
        self._body.append(f'{closing}<section id="s{number}"><h2><span>{number}</span>{_text(title)}</h2>')
        return self.text(text) if text else self

    def heading(self, title: str, text: str = "") -> Self:
        """A heading inside a section."""
        self._add(f"<h3>{_text(title)}</h3>")
        return self.text(text) if text else self

    def text(self, text: str) -> Self:
        """Paragraphs, separated by blank lines."""
        paragraphs = re.split(r"\n\s*\n", text.strip())
        return self._add("".join(f'<p class="prose">{_text(paragraph)}</p>' for paragraph in paragraphs))

    def figure(
        self,
        rows: Mapping[str, Sequence[tuple[Pixels, str]]],
        columns: Sequence[str],
        *,
        note: str = "",
    ) -> Self:
        """A grid of pictures: row label -> (picture, text beneath) for each column."""
        cells = ['<span class="corner"></span>'] + [f'<div class="column">{_text(column)}</div>' for column in columns]
        cells = cells if any(columns) else []
        for label, pictures in rows.items():
            if len(pictures) != len(columns):
                raise ValueError(f"row {label!r} has {len(pictures)} pictures for {len(columns)} columns")
            cells.append(f'<div class="row">{_text(label)}</div>')
            for (pixels, below), column in zip(pictures, columns, strict=True):
                alt = " · ".join(filter(None, (label, column, below)))
                caption = f"<figcaption><b>{_text(column)}</b> {_text(below)}</figcaption>"
                cells.append(f'<figure class="cell">{picture(pixels, alt)}{caption}</figure>')
        head = "96px" if any(rows) else "0px"
        style = f"--columns:{len(columns)};--narrow:{4 if len(columns) > 6 else 2};--head:{head}"
        return self._add(
            f'<div class="block"><div class="grid" style="{style}">{"".join(cells)}</div>{_note(note)}</div>'
        )

    def gallery(
        self, images: Sequence[Pixels], captions: Sequence[str], marks: Sequence[bool | None] = (), *, note: str = ""
    ) -> Self:
        """Small pictures with captions; a mark is a tick, a cross or (None) nothing."""
        marks = marks or [None] * len(images)
        if not len(images) == len(captions) == len(marks):
            raise ValueError(
                f"{len(images)} images, {len(captions)} captions and {len(marks)} marks: counts must agree"
            )
        cells = [
            f'<figure class="cell">{picture(pixels, caption)}'
            f"<figcaption>{_mark(mark)}{_text(caption)}</figcaption></figure>"
            for pixels, caption, mark in zip(images, captions, marks, strict=True)
        ]
        return self._add(f'<div class="block"><div class="gallery">{"".join(cells)}</div>{_note(note)}</div>')

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, note: str = "") -> Self:
        """Columns of numbers are aligned right; True and False read "reached" and "missed"; None is a dash or blank."""
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"row {list(row)} has {len(row)} cells for {len(columns)} columns")
        plain = [[cell.cell if isinstance(cell, WithNote) else cell for cell in row] for row in rows]
        kinds = [' class="number"' if _numeric([row[i] for row in plain]) else "" for i in range(len(columns))]
        decimals = [_decimals([row[i] for row in plain]) for i in range(len(columns))]
        head = "".join(f"<th{kind}>{_text(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{kinds[i]}>{_cell(cell, decimals[i]) if cell is not None else '–' * bool(kinds[i])}</td>"
                for i, cell in enumerate(row)
            )
            + "</tr>"
            for row in rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return self._add(f'<div class="block"><div class="scroll">{table}</div>{_note(note)}</div>')

    def lines(
        self,
        series: Mapping[str, Points],
        x_label: str,
        y_label: str,
        *,
        log_y: bool = False,
        target: float | None = None,
        title: str = "",
    ) -> Self:
        """A line chart; charts that follow each other stand side by side."""
        caption = f"<figcaption>{_text(title)}</figcaption>" if title else ""
        chart = line_chart(series, x_label=x_label, y_label=y_label, log_y=log_y, target=target)
        return self._add(f'<figure class="block chart">{caption}{chart}</figure>')

    def scatter(
        self,
        marks: Mapping[str, Points],
        x_label: str,
        y_label: str,
        *,
        lines: Mapping[str, Points] | None = None,
        log_x: bool = False,
        level: tuple[str, float] | None = None,
        title: str = "",
    ) -> Self:
        """A chart of marks by name; see `scatter_chart`. Charts that follow each other stand side by side."""
        caption = f"<figcaption>{_text(title)}</figcaption>" if title else ""
        chart = scatter_chart(marks, x_label=x_label, y_label=y_label, lines=lines, log_x=log_x, level=level)
        return self._add(f'<figure class="block chart">{caption}{chart}</figure>')

    def code(self, commands: str) -> Self:
        """Shell commands, one a line; lines that begin with # are remarks."""
        lines = [
            f'<span class="remark">{escape(line)}</span>' if line.startswith("#") else _command(line)
            for line in commands.strip().splitlines()
        ]
        text = "\n".join(lines)
        return self._add(f'<pre class="block"><code>{text}</code></pre>')

    def details(self, title: str, fields: Mapping[str, object]) -> Self:
        """A record that opens on click: name -> value."""
        items = "".join(f"<dt>{_text(name)}</dt><dd>{_text(str(value))}</dd>" for name, value in fields.items())
        return self._add(
            f'<details class="block"><summary>{_text(title)}</summary><dl class="fields">{items}</dl></details>'
        )

    def footer(self, *lines: str) -> Self:
        """Versions, hardware, licences."""
        self._footer += lines
        return self

    def html(self) -> str:
        """The whole page."""
        style, script = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
        links = "".join(
            f'<a href="#s{number}"><span>{number}</span>{_text(title)}</a>'
            for number, title in enumerate(self._sections, 1)
        )
        eyebrow = f'<p class="eyebrow">{_text(self.eyebrow)}</p>' if self.eyebrow else ""
        body = "".join(self._body) + ("</section>" if self._sections else "")
        footer = "".join(f"<p>{_text(line)}</p>" for line in self._footer)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>\n{style}</style></head>\n<body><main><header>{eyebrow}"
            f'<h1>{_text(self.title)}</h1><p class="summary">{_text(self.summary)}</p><nav>{links}</nav>'
            f"{''.join(self._head)}</header>\n{body}</main>\n<footer>{footer}</footer>"
            '<dialog aria-label="Picture, enlarged"><img alt=""><p><b></b><small>← → to flip, Esc to close</small></p>'
            f"</dialog><script>\n{script}</script></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page; a reader sees the old one or the new one, never a half."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
            file.write(self.html())
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
        return path

    def _add(self, block: str) -> Self:
        (self._body if self._sections else self._head).append(block)
        return self


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>' if text else ""


def _mark(mark: bool | None, words: tuple[str, str] = ("", "")) -> str:
    if mark is None:
        return ""
    sign, kind, word = ("✓", "yes", words[0]) if mark else ("✗", "no", words[1])
    label = "" if word else f' role="img" aria-label="{"right" if mark else "wrong"}"'
    return f'<span class="mark {kind}"{label}>{sign} {word}</span> '


def _cell(cell: str | int | float | bool | Share | WithNote, decimals: int) -> str:
    if isinstance(cell, WithNote):
        return f'<span title="{escape(cell.note)}">{_cell(cell.cell, decimals)}</span>'
    if isinstance(cell, bool):
        return _mark(cell, ("reached", "missed"))
    if isinstance(cell, Share):
        tick = "" if cell.target is None else f'<u style="left:{100 * cell.target:.1f}%"></u>'
        bar = f'<span class="bar"><i style="width:{100 * cell.value:.1f}%"></i>{tick}</span>'
        return f'<span class="share"><span>{100 * cell.value:.1f} %</span>{bar}</span>'
    if isinstance(cell, float):
        return f"{cell:,.{decimals}f}"
    return f"{cell:,}" if isinstance(cell, int) else _text(cell)


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


def _command(line: str) -> str:
    return f'<span class="prompt">$ </span>{escape(line)}' if line.strip() else ""
