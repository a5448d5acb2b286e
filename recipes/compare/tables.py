"""Figures of several tokenizers as tables: a row each, a column per figure, made from whatever was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from recipes.compare.comparison import Comparison, Measured
from recipes.compare.ranking import counted_rate, in_digits
from tokenizers_mm.measure import Measurement, psnr_at_rate
from tokenizers_mm.report import Cell, WithNote

__all__ = ["Block", "codec_note", "codec_table", "figure_tables", "how_made", "protocol_blocks", "tokenizer_table"]

_RATES = (
    "Rate", "Rate per image", "Rate per pixel", "Code usage", "Perplexity", "Marginal entropy",
    "Marginal entropy per pixel", "KL", "KL per pixel",
)  # fmt: skip
_SEMANTICS = ("Linear probe", "Nearest neighbours", "Chance", "Most frequent class", "Zero-shot", "Alignment")
_SPEED = ("Speed", "Peak memory")
_THOUSANDS = 1000
# Says nothing where it is the default.
_UNREMARKABLE = ("", "none", None)


@dataclass(frozen=True)
class Block:
    """A table with its heading and what to know about it."""

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    note: str = ""


def figure_tables(tokenizers: Sequence[Measured]) -> Iterator[Block]:
    """Reconstruction, information, semantics and speed, of those that were measured."""
    for title in ("Reconstruction", "Information", "Semantics", "Speed and memory"):
        columns: dict[str, str] = {}
        for one in tokenizers:
            for m in one.evaluation.measurements:
                if _theme(m.name) == title:
                    columns.setdefault(m.name, _heading(m))
        if not columns:
            continue
        cells = [_column(tokenizers, name) for name in columns]
        rows = tuple(zip((one.entry.name for one in tokenizers), *cells, strict=True))
        shown = [m for one in tokenizers for m in one.evaluation.measurements if m.name in columns]
        yield Block(title, ("", *columns.values()), rows, _notes(shown, title))


def tokenizer_table(tokenizers: Sequence[Measured]) -> Block:
    """What each one is."""
    rows = tuple(
        (
            one.entry.name,
            one.entry.what,
            " × ".join(str(side) for side in one.entry.spec.image_size),
            one.entry.tokens,
            one.entry.weights / 1e6,
            one.entry.fingerprint[:12],
        )
        for one in tokenizers
    )
    columns = (
        "",
        "What it is",
        "Image size of its own",
        "Tokens of one such image",
        "Weights, millions",
        "Fingerprint",
    )
    licences = [f"{one.entry.name}: {one.entry.licence}" for one in tokenizers if one.entry.licence]
    note = f"Licences of the weights. {'; '.join(licences)}." if licences else ""
    return Block("What each one is", columns, rows, note)


def codec_table(comparison: Comparison) -> Block | None:
    """Each tokenizer beside ordinary codecs at its rate; None where none of them decodes."""
    rows: list[tuple[Cell, ...]] = []
    for one in comparison.tokenizers:
        psnr = one.value("PSNR")
        if psnr is None:
            continue
        rate = counted_rate(one)
        others = (psnr_at_rate(curve, rate) for curve in comparison.codecs.values())
        rows.append((one.entry.name, in_digits(rate), psnr, *others))
    if not rows:
        return None
    names = (f"{_CODEC_NAMES[codec]}, dB" for codec in comparison.codecs)
    note = (
        "Codes are counted in full, Gaussian latents by the KL divergence of their posterior, other latents as 16 bits "
        f"a channel. {codec_note(comparison)} Between two qualities the curve is straight; a dash: no quality makes a "
        "file of that size."
    )
    return Block("At the same rate", ("", "Bits per pixel", "PSNR, dB", *names), tuple(rows), note)


def codec_note(comparison: Comparison) -> str:
    """How JPEG and WebP were written."""
    which = "all" if comparison.codec_images == comparison.count else f"{comparison.codec_images:,} of the"
    if comparison.tiled:
        return f"JPEG and WebP: {which} images side by side in one file, so that its header is shared."
    return f"JPEG and WebP: {which} images, a file each, every byte counted."


def protocol_blocks(one: Measured) -> Iterator[tuple[str, dict[str, object]]]:
    """One record for figures that were made the same way: (their names, the protocol's fields and notes)."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in one.evaluation.measurements:
        groups.setdefault(measurement.protocol.to_json(), []).append(measurement)
    for group in groups.values():
        fields: dict[str, object] = {
            name.replace("_", " "): value
            for name, value in asdict(group[0].protocol).items()
            if value not in _UNREMARKABLE
        }
        notes = list(dict.fromkeys(measurement.note for measurement in group if measurement.note))
        yield (
            ", ".join(measurement.name for measurement in group),
            fields | ({"notes": "; ".join(notes)} if notes else {}),
        )


def how_made(measurement: Measurement) -> str:
    """A figure's protocol in one sentence, for where the pointer rests on it."""
    protocol = measurement.protocol
    pixels = [
        f"{name} {value}"
        for name, value in (("resized", protocol.resize), ("cropped", protocol.crop), ("padded", protocol.padding))
        if value != "none"
    ]
    parts = [
        f"{protocol.samples:,} images: {protocol.reference}",
        *pixels,
        "" if protocol.extractor == "none" else f"features of {protocol.extractor}",
        measurement.note,
    ]
    return "; ".join(part for part in parts if part)


_CODEC_NAMES = {"jpeg": "JPEG", "webp": "WebP"}


def _theme(name: str) -> str:
    if name in _RATES:
        return "Information"
    if name.startswith(_SEMANTICS):
        return "Semantics"
    return "Speed and memory" if name.startswith(_SPEED) else "Reconstruction"


def _heading(measurement: Measurement) -> str:
    """Name and unit; what of the unit differs between tokenizers (how many streams) is left to the note."""
    unit = measurement.unit.partition(",")[0]
    return f"{measurement.name}, {unit}" if unit else measurement.name


def _column(tokenizers: Sequence[Measured], name: str) -> list[Cell]:
    """A figure of every tokenizer, with the decimals of the smallest, unless some go into thousands."""
    found = [next((m for m in one.evaluation.measurements if m.name == name), None) for one in tokenizers]
    large = max(m.value for m in found if m is not None) >= _THOUSANDS
    cells: list[Cell] = []
    for m in found:
        if m is None:
            cells.append(None)
            continue
        _, _, rest = m.unit.partition(", ")
        cells.append(WithNote(m.text if large else m.value, "; ".join(filter(None, (how_made(m), rest)))))
    return cells


def _notes(shown: Sequence[Measurement], title: str) -> str:
    """What a reader must know to trust the table, once each."""
    texts = dict.fromkeys(m.note for m in shown if m.note and not m.name.startswith(("Linear", "Nearest")))
    if title == "Semantics":
        protocol = shown[0].protocol
        texts = {f"one pooled vector an image, on {protocol.samples:,} images: {protocol.reference}": None} | texts
        if protocol.reference == "emoji, all":
            texts[
                "cut into folds by family; tokenizers may have been trained on some: `--probe emoji:test` asks about"
                " held-out ones only"
            ] = None
    sentences = [f"{text[0].upper()}{text[1:]}" for text in texts]
    return f"{'. '.join(sentences)}." if sentences else ""
