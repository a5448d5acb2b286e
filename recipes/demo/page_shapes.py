"""The page's shapes: pictures with ticks, what the judge read, targets, controls, variety and memorisation."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.demo.page_photos import Pictures
from recipes.gates import CONTROLS, GENERATOR_TITLES, SAMPLING, Example, Figure, Findings
from tokenizers_mm.data.sets import ATTRIBUTES
from tokenizers_mm.report import Cell, Page, Pixels, Share

__all__ = ["add_shapes"]

_COLUMNS = ("size", "colour", "shape", "position", "joint")
_TITLES = ("Size", "Colour", "Shape", "Position", "All four")
_LONGEST_TEXT = 60


def add_shapes(page: Page, findings: Findings, pictures: Pictures) -> None:
    """Pictures first, then figures."""
    page.section(
        "Shapes that can be checked",
        "432 captions name a size, a colour, a shape and a position; tokenizers and generators learned from 367 of "
        "these combinations, the other 65 were held out. An independent judge, trained on real images only, reads the "
        "four attributes back from whatever a model drew: a picture is right or wrong, not a matter of taste.\n\n"
        "Pictures are the first ones made, never chosen.",
    )
    page.heading("Reconstructions")
    rows = {name: _cut(pictures(f"shapes_{name.lower()}"), 8) for name in ("Original", "FSQ", "VAE")}
    page.figure({name: [(pixels, "") for pixels in row] for name, row in rows.items()}, [""] * 8)
    page.heading(
        "Drawn token by token",
        f"An autoregressive transformer over FSQ codes, {_options('ar')}. The first half are combinations it has seen, "
        "the second half are held out. A tick means that the judge read all four attributes as asked.",
    )
    _drawn(page, findings, pictures, "ar_samples")
    page.heading("Drawn by a flow", f"Rectified flow on the latents of the VAE, {_options('flow')}; the same captions.")
    _drawn(page, findings, pictures, "flow_samples")
    page.heading(
        "Read back: picture to caption",
        "The same transformer as above writes captions of real pictures. A tick means that every byte is right.",
    )
    examples = findings.examples["captions"]
    texts = [_printable(example.read) for example in examples]
    page.gallery(_cut(pictures("captions"), len(examples)), texts, [example.right for example in examples])
    _add_accuracies(page, findings)
    _add_targets(page, findings)
    _add_controls(page, findings)


def _options(name: str) -> str:
    return ", ".join(f"{option.replace('_', ' ')} {value}" for option, value in SAMPLING[name].items())


def _cut(stack: Pixels, count: int) -> list[Pixels]:
    """The images of a stack, from top to bottom."""
    height = len(stack) // count
    return [stack[start : start + height] for start in range(0, count * height, height)]


def _drawn(page: Page, findings: Findings, pictures: Pictures, name: str) -> None:
    examples = findings.examples[name]
    page.gallery(
        _cut(pictures(name), len(examples)),
        [f"{example.caption}{_misread(example)}" for example in examples],
        [example.right for example in examples],
    )


def _misread(example: Example) -> str:
    """Attributes that the judge read otherwise."""
    parts = len(ATTRIBUTES) - 1  # the last, position, is two words
    pairs = zip(example.caption.split(" ", parts), example.read.split(" ", parts), strict=True)
    wrong = [read for asked, read in pairs if asked != read]
    return f" (read: {', '.join(wrong)})" if wrong else ""


def _printable(text: str) -> str:
    clean = "".join(letter if letter.isprintable() else "·" for letter in text[:_LONGEST_TEXT])
    return clean.strip() or "(nothing)"


def _add_accuracies(page: Page, findings: Findings) -> None:
    rows: list[list[Cell]] = [_judged(findings, "shapes/judge", "Real images: the judge itself")]
    for name in ("fsq", "vae"):
        rows.append(_judged(findings, f"shapes/{name}", f"{name.upper()} reconstructions: the ceiling"))
    for name, words in GENERATOR_TITLES.items():
        rows.append(_judged(findings, f"shapes/{name}/all", words))
        rows.append(_judged(findings, f"shapes/{name}/seen", f"{words}, seen combinations"))
        rows.append(_judged(findings, f"shapes/{name}/heldout", f"{words}, held-out combinations"))
    page.heading("What the judge reads").table(
        ["", *_TITLES, ""],
        rows,
        note="The mark on a bar is the target: for generators 90 % of what the judge reads from reconstructions "
        "(taken as at least 93 %), and 75 % for shape, the hardest.",
    )


def _judged(findings: Findings, path: str, words: str) -> list[Cell]:
    figures = [findings[f"{path}/{column}"] for column in _COLUMNS]
    outcomes = [figure.reached for figure in figures if figure.reached is not None]
    return [words, *(Share(figure.value, figure.at_least) for figure in figures), all(outcomes) if outcomes else None]


def _add_targets(page: Page, findings: Findings) -> None:
    rows: list[list[Cell]] = [
        _goal(findings["captions/seen"], "Captions written, seen combinations: exact"),
        _goal(findings["captions/heldout"], "Captions written, held-out combinations: exact"),
    ]
    for name in ("fsq", "vae"):
        rows.append(_goal(findings[f"shapes/{name}/joint"], f"{name.upper()} reconstructions: all four read"))
    for name, words in GENERATOR_TITLES.items():
        for column in ("colour", "size", "position", "shape"):
            rows.append(_goal(findings[f"shapes/{name}/all/{column}"], f"{words}: {column}"))
    page.heading("Against the targets").table(["", "Measured", "Target", ""], rows)
    rows = []
    for name, words in GENERATOR_TITLES.items():
        rows.append(_goal(findings[f"shapes/{name}/diversity"], f"{words}: variety, drawn over real"))
        rows.append(_goal(findings[f"shapes/{name}/distance_ratio"], f"{words}: distance to training set, over unseen"))
        rows.append(_goal(findings[f"shapes/{name}/copies"], f"{words}: copies of training images"))
    page.heading(
        "Variety and memorisation",
        "Variety is the pixel variance among pictures of one caption, drawn over real. Distance is that to the nearest "
        "training image, in the features of the judge: a copier would be near 0, an honest generator is near 1, and "
        "pictures that look like nothing real are far above it.",
    )
    copies = findings.value("control/copies/share")
    page.table(
        ["", "Measured", "Target", ""],
        rows,
        note=f"Control: training images handed in as if drawn have a distance of "
        f"{findings.value('control/copies/ratio'):.2f}, and {100 * copies:.1f} % are called copies.",
    )


def _goal(figure: Figure, words: str) -> list[Cell]:
    scale, unit, form = (100.0, " %", ".1f") if figure.unit == "share" else (1.0, "", ".2f")
    low, high = (None if bound is None else f"{scale * bound:{form}}" for bound in (figure.at_least, figure.at_most))
    target = f"{low} – {high}{unit}" if low and high else f"≥ {low}{unit}" if low else f"≤ {high}{unit}"
    return [words, f"{scale * figure.value:{form}}{unit}", target, figure.reached]


def _add_controls(page: Page, findings: Findings) -> None:
    rows: list[list[Cell]] = []
    for name, words in (CONTROLS | {"captions": "Captions written, of other images"}).items():
        figures = [findings.figures.get(f"control/{name}/{column}") for column in _COLUMNS]
        cells: Sequence[Cell] = [None if figure is None else Share(figure.value) for figure in figures]
        rows.append([words, *cells, all(figure.reached is not False for figure in figures if figure is not None)])
    chance: list[Cell] = [Share(1 / len(values)) for values in ATTRIBUTES.values()]
    combinations = 1.0
    for values in ATTRIBUTES.values():
        combinations /= len(values)
    rows.append(["An even guess", *chance, Share(combinations), None])
    page.heading(
        "Controls",
        "What must fail: pictures held against captions of other pictures, tokens drawn at random, no caption at all. "
        "The judge may agree with a caption as often as chance has it, within four standard deviations.",
    ).table(["", *_TITLES, "At chance"], rows)
