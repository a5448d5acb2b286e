"""The comparison as a page: pictures, what the bits buy, every figure, and how each was made."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from recipes.compare.comparison import Comparison
from recipes.compare.ranking import RULE, headlines
from recipes.compare.tables import (
    Block,
    codec_note,
    codec_table,
    figure_tables,
    protocol_blocks,
    tokenizer_table,
)
from tokenizers_mm.report import Page, Pixels, Points
from tokenizers_mm.runtime import local_path

__all__ = ["write_comparison"]

_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
_RATE_LABEL = "bits per pixel"


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write `compare.json` and `index.html`, which needs nothing but itself; returns the page's path."""
    local_path(folder, "folder").mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(comparison.to_json() + "\n", encoding="utf-8")
    page = _opening(comparison)
    _add_pictures(page, comparison)
    _add_charts(page, comparison)
    page.section(
        "Every figure",
        "Rest on a number to see how it was made; the last section says it in full. Figures may be compared down a "
        "column where their protocols agree.",
    )
    for block in figure_tables(comparison.tokenizers):
        _add_table(page, block)
    _add_table(page, tokenizer_table(comparison.tokenizers))
    _add_protocols(page, comparison)
    return page.write(folder / "index.html")


def _opening(comparison: Comparison) -> Page:
    tokenizers, settings = comparison.tokenizers, comparison.settings
    several = len(tokenizers) > 1
    size = "at their own sizes" if settings.size is None else f"of {settings.size} × {settings.size} pixels"
    summary = [
        f"{_NUMBERS[len(tokenizers)]} tokenizer{'s were' if several else ' was'} given "
        f"{'the same ' if several else ''}{comparison.count:,} images {size} ({comparison.title})."
    ]
    summary += [f"{line[0].upper()}{line[1:]}." for line in comparison.tokenizers[0].evaluation.left_out_text]
    facts = [(f"{comparison.count:,}", "images measured")]
    for sentence, fact in headlines(tokenizers):
        summary.append(sentence)
        facts.append(fact)
    titles = ", ".join(one.entry.name for one in tokenizers)
    eyebrow = f"tokenizers-mm {comparison.environment['tokenizers-mm']} · tmm compare"
    page = Page(
        f"Side by side: {titles}" if len(titles) < 80 else "Tokenizers side by side", " ".join(summary), eyebrow=eyebrow
    )
    environment = comparison.environment
    page.footer(" · ".join(f"{name} {value}" for name, value in environment.items()))
    return page.facts(facts)


def _add_pictures(page: Page, comparison: Comparison) -> None:
    drawing = [one for one in comparison.tokenizers if one.pictures]
    silent = [one.entry.name for one in comparison.tokenizers if not one.pictures]
    if not drawing:
        return
    text = "The same images through each. Select a picture and use the arrow keys to flip between versions."
    text += f" {', '.join(silent)} only encode{'s' * (len(silent) == 1)}: no pictures." if silent else ""
    page.section("Pictures", text)
    rows = {}
    for number, original in enumerate(comparison.originals):
        versions = [one.pictures[number] for one in drawing]
        captions = [f"{_psnr(version, original):.1f} dB" for version in versions]
        rows[f"Image {number + 1}"] = [(original, ""), *zip(versions, captions, strict=True)]
    page.figure(rows, ["Original", *(one.entry.name for one in drawing)])


def _psnr(a: Pixels, b: Pixels) -> float:
    error = float(np.square(a.astype(np.float64) - b).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _add_charts(page: Page, comparison: Comparison) -> None:
    """Rate against distortion, rate against semantics, one against the other: those that there are figures for."""
    distortion = _marks(comparison, "PSNR")
    semantics = _marks(comparison, "Linear probe")
    if not distortion and not semantics:
        return
    text = (
        "Filled marks: all that the tokens can carry, log2 of the vocabulary or 16 bits a channel. Hollow marks: what "
        "an ideal coder would need, the entropy of the codes or the KL divergence of the posterior."
    )
    page.section("What the bits buy", f"{text}\n\n{RULE}" if len(comparison.tokenizers) > 1 else text)
    if distortion:
        curves = {
            name: [(point.bpp, point.psnr) for point in comparison.codecs[codec]]
            for codec, name in (("jpeg", "JPEG"), ("webp", "WebP"))
        }
        page.scatter(distortion, _RATE_LABEL, "PSNR, dB", lines=curves, log_x=True, title="Closeness to the pixels")
    if semantics:
        probed = next(one for one in comparison.tokenizers if one.value("Linear probe") is not None)
        level = ("most frequent class", probed.value("Most frequent class") or 0.0)
        page.scatter(
            semantics, _RATE_LABEL, "linear probe, %", log_x=True, level=level, title="Knowing what is in the image"
        )
    both = _trade(comparison)
    if sum(map(bool, both.values())) > 1:
        page.scatter(both, "PSNR, dB", "linear probe, %", title="One against the other")
    table = codec_table(comparison)
    if table is not None:
        _add_table(page, table)
    elif distortion:
        page.text(codec_note(comparison))


def _marks(comparison: Comparison, name: str) -> dict[str, Points]:
    """Places (rate, figure) of every tokenizer that has the figure: all bits first, then those needed."""
    marks: dict[str, Points] = {}
    for one in comparison.tokenizers:
        value = one.value(name)
        drawn = value is not None and math.isfinite(value)
        marks[one.entry.name] = [(rate, value) for rate in (one.rate, one.spent) if rate and drawn]  # type: ignore[misc]
    return marks if any(marks.values()) else {}


def _trade(comparison: Comparison) -> Mapping[str, Points]:
    """Places (PSNR, probe) of the tokenizers that have both."""
    marks: dict[str, Points] = {}
    for one in comparison.tokenizers:
        psnr, probe = one.value("PSNR"), one.value("Linear probe")
        both = psnr is not None and probe is not None and math.isfinite(psnr)
        marks[one.entry.name] = [(psnr, probe)] if both else []  # type: ignore[list-item]
    return marks


def _add_table(page: Page, block: Block) -> None:
    page.heading(block.title).table(block.columns, block.rows, note=block.note)


def _add_protocols(page: Page, comparison: Comparison) -> None:
    page.section("How every figure was made", "All of it, with the figures, is in `compare.json` beside this page.")
    for one in comparison.tokenizers:
        page.heading(one.entry.name)
        for title, fields in protocol_blocks(one):
            page.details(title, fields)
    page.heading("Again").code(_command(comparison))


def _command(comparison: Comparison) -> str:
    """What makes this page again."""
    words = ["tmm", "compare", *(one.entry.source for one in comparison.tokenizers)]
    for one in comparison.tokenizers:
        words += ["--name", one.entry.name]
    for name, value in asdict(comparison.settings).items():
        option = f"--{'fd' if name == 'frechet' else name.replace('_', '-')}"
        if name == "speed":
            words += [] if value else ["--no-speed"]
        elif value is not None:
            words += [option, str(value)]
    return shlex.join(words)
