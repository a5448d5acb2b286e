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
from html import escape
from pathlib import Path
from typing import Self

from tokenizers_mm.report.cells import Cell, marked, prose, table
from tokenizers_mm.report.chart import Points, line_chart, scatter_chart
from tokenizers_mm.report.picture import Pixels, picture

__all__ = ["Page"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_ARROW = (
    '<svg class="arrow" viewBox="0 0 26 16" aria-hidden="true"><path d="M1 8h23M17 1l7 7-7 7" fill="none" '
    'stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"/></svg>'
)


class Page:
    """Collects blocks from top to bottom; every method returns the page, `write` ends it.

    title    one statement
    summary  what it means, in two or three sentences
    eyebrow  a short line above
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
            f"<figcaption><b>{prose(name)}</b><span>{prose(detail)}</span></figcaption></figure>"
            for pixels, name, detail in stages
        ]
        return self._add(f'<div class="strip" style="--ratio:{width} / {height}">{_ARROW.join(figures)}</div>')

    def facts(self, facts: Iterable[tuple[str, str]]) -> Self:
        """Headline figures: (number, what it is). A unit after a space is set small."""
        items = []
        for number, label in facts:
            value, _, unit = number.partition(" ")
            small = f"<small>{prose(unit)}</small>" if unit else ""
            items.append(f"<div><dt>{prose(label)}</dt><dd>{prose(value)}{small}</dd></div>")
        return self._add(f'<dl class="facts">{"".join(items)}</dl>')

    def section(self, title: str, text: str = "") -> Self:
        """Start a numbered section; it also appears in the list at the top."""
        self._sections.append(title)
        number = len(self._sections)
        closing = "</section>" if number > 1 else ""
        self._body.append(f'{closing}<section id="s{number}"><h2><span>{number}</span>{prose(title)}</h2>')
        return self.text(text) if text else self

    def heading(self, title: str, text: str = "") -> Self:
        """A heading inside a section."""
        self._add(f"<h3>{prose(title)}</h3>")
        return self.text(text) if text else self

    def text(self, text: str) -> Self:
        """Paragraphs, separated by blank lines."""
        paragraphs = re.split(r"\n\s*\n", text.strip())
        return self._add("".join(f'<p class="prose">{prose(paragraph)}</p>' for paragraph in paragraphs))

    def figure(
        self,
        rows: Mapping[str, Sequence[tuple[Pixels, str]]],
        columns: Sequence[str],
        *,
        note: str = "",
    ) -> Self:
        """A grid of pictures: row label -> (picture, text beneath) for each column."""
        cells = ['<span class="corner"></span>'] + [f'<div class="column">{prose(column)}</div>' for column in columns]
        cells = cells if any(columns) else []
        for label, pictures in rows.items():
            if len(pictures) != len(columns):
                raise ValueError(f"row {label!r} has {len(pictures)} pictures for {len(columns)} columns")
            cells.append(f'<div class="row">{prose(label)}</div>')
            for (pixels, below), column in zip(pictures, columns, strict=True):
                alt = " · ".join(filter(None, (label, column, below)))
                caption = f"<figcaption><b>{prose(column)}</b> {prose(below)}</figcaption>"
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
            f"<figcaption>{marked(mark)}{prose(caption)}</figcaption></figure>"
            for pixels, caption, mark in zip(images, captions, marks, strict=True)
        ]
        return self._add(f'<div class="block"><div class="gallery">{"".join(cells)}</div>{_note(note)}</div>')

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, note: str = "") -> Self:
        """Columns of numbers are aligned right; True and False read "reached" and "missed"; None is a dash or blank."""
        return self._add(f'<div class="block"><div class="scroll">{table(columns, rows)}</div>{_note(note)}</div>')

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
        return self._chart(title, line_chart(series, x_label=x_label, y_label=y_label, log_y=log_y, target=target))

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
        chart = scatter_chart(marks, x_label=x_label, y_label=y_label, lines=lines, log_x=log_x, level=level)
        return self._chart(title, chart)

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
        items = "".join(f"<dt>{prose(name)}</dt><dd>{prose(str(value))}</dd>" for name, value in fields.items())
        return self._add(
            f'<details class="block"><summary>{prose(title)}</summary><dl class="fields">{items}</dl></details>'
        )

    def footer(self, *lines: str) -> Self:
        """Versions, hardware, licences."""
        self._footer += lines
        return self

    def html(self) -> str:
        """The whole page."""
        style, script = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
        links = "".join(
            f'<a href="#s{number}"><span>{number}</span>{prose(title)}</a>'
            for number, title in enumerate(self._sections, 1)
        )
        eyebrow = f'<p class="eyebrow">{prose(self.eyebrow)}</p>' if self.eyebrow else ""
        body = "".join(self._body) + ("</section>" if self._sections else "")
        footer = "".join(f"<p>{prose(line)}</p>" for line in self._footer)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>\n{style}</style></head>\n<body><main><header>{eyebrow}"
            f'<h1>{prose(self.title)}</h1><p class="summary">{prose(self.summary)}</p><nav>{links}</nav>'
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

    def _chart(self, title: str, chart: str) -> Self:
        caption = f"<figcaption>{prose(title)}</figcaption>" if title else ""
        return self._add(f'<figure class="block chart">{caption}{chart}</figure>')

    def _add(self, block: str) -> Self:
        (self._body if self._sections else self._head).append(block)
        return self


def _note(text: str) -> str:
    return f'<p class="note">{prose(text)}</p>' if text else ""


def _command(line: str) -> str:
    return f'<span class="prompt">$ </span>{escape(line)}' if line.strip() else ""
