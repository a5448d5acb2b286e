"""The demo's page: findings in, one self-contained HTML file out. Whatever was found is shown, misses too."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.demo.page_photos import Pictures, add_photographs
from recipes.demo.page_shapes import add_shapes
from recipes.gates import PICTURES, Findings
from tokenizers_mm.report import Cell, Page, Pixels, Points

__all__ = ["write_demo_page"]

_FEW_STEPS, _CURVE_POINTS = 100, 50
_NAMES = {
    "photos_fsq": "FSQ on photographs",
    "photos_vae": "VAE on photographs",
    "shapes_fsq": "FSQ on shapes",
    "shapes_vae": "VAE on shapes",
    "tokens_fsq": "Shapes to FSQ tokens",
    "tokens_vae": "Shapes to VAE latents",
    "shapes_ar": "Token by token",
    "shapes_flow": "Flow",
    "everything": "Everything, measuring not included",
}
# Chart title -> label of the vertical axis, and line name -> run and key of its history.
_CURVES: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "Tokenizers on photographs": (
        "squared error",
        {"FSQ": ("photos_fsq", "l2"), "VAE": ("photos_vae", "l2")},
    ),
    "Tokenizers on shapes": ("squared error", {"FSQ": ("shapes_fsq", "l2"), "VAE": ("shapes_vae", "l2")}),
    "Token by token": ("nats per symbol", {"image": ("shapes_ar", "image"), "caption": ("shapes_ar", "text")}),
    "Flow": ("squared error of the velocity", {"velocity": ("shapes_flow", "velocity")}),
}


_COMMANDS = """
# train a tokenizer on your own pictures, and measure it
tmm train photos_fsq --out runs/mine --set "data={{kind: folder, path: pictures, size: 48}}"
tmm eval runs/mine pictures --size 128

# pictures to tokens on disk; check every byte of them
tmm encode runs/mine pictures --out tokens --size 128
tmm verify tokens

# draw with the generators of this demo
tmm sample {demo}/shapes_ar {demo}/shapes_fsq "large red circle top left" --out ar.png
tmm sample {demo}/shapes_flow {demo}/shapes_vae "small cyan cross middle centre" --out flow.png

# what else there is; how fast it is
tmm recipes
make bench
"""


def write_demo_page(findings: Findings, folder: Path, path: Path) -> Path:
    """Write the page to `path`; returns it.

    folder  the demo's folder: its history.jsonl files and pictures are read

    Raises `ValueError` where one of them is missing.
    """
    histories = {run: _history(folder / run) for run in _NAMES if run.startswith(("photos", "shapes"))}
    pictures = partial(_picture, folder)
    page = _opening(findings, pictures, histories)
    add_photographs(page, findings, pictures)
    add_shapes(page, findings, pictures)
    _add_tokens(page, findings)
    _add_learning(page, findings, histories)
    _add_protocols(page, findings)
    _add_commands(page, folder)
    environment = findings.environment
    libraries = [
        f"{name} {value}" for name, value in environment.items() if name not in ("cores", "date", "perceptual")
    ]
    page.footer(
        " · ".join(libraries),
        f"{environment['cores']} CPU cores · {environment['date']}",
        "Photographs: china and flower come with scikit-learn; training pictures with scikit-image.",
    )
    return page.write(path)


History = list[dict[str, float]]


def _history(run: Path) -> History:
    try:
        rows: History = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    except OSError as error:
        raise ValueError(f"{run / 'history.jsonl'}: cannot be read; has the demo finished? ({error})") from error
    return rows


def _picture(folder: Path, name: str) -> Pixels:
    path = folder / PICTURES / f"{name}.png"
    if not path.is_file():
        raise ValueError(f"{path}: is missing; measure_demo writes it")
    return np.asarray(Image.open(path).convert("RGB"))


def _opening(findings: Findings, pictures: Pictures, histories: Mapping[str, History]) -> Page:
    reached, targets = findings.targets()
    steps = max((int(rows[-1]["step"]) for rows in histories.values() if rows), default=0)
    summary = (
        f"One command trained four tokenizers and two generators from nothing, on {findings.environment['cores']} CPU "
        f"cores, and measured them on pictures they had never seen. They reached {reached} of {targets} targets"
        f"{'; those they missed are marked' if reached < targets else ''}."
    )
    if steps < _FEW_STEPS:
        summary += f" This was a quick run of {steps} steps: it shows that the path works, not what it can learn."
    page = Page(
        "Pictures in, tokens out, pictures back: measured on this machine",
        summary,
        eyebrow=f"tokenizers-mm {findings.environment['tokenizers-mm']} · tmm demo",
    )
    original, tokens, decoded = (pictures(f"china_{name}") for name in ("original", "tokens", "fsq"))
    height, width = original.shape[:2]
    rows, columns = tokens.shape[:2]
    fsq = "photos/china/fsq"
    rate, vocabulary = findings.value(f"{fsq}/rate"), findings.value(f"{fsq}/vocabulary")
    page.strip(
        [
            (original, "A held-out photograph", f"{width} × {height} pixels, {24 * height * width / 1e6:.1f} Mbit"),
            (
                tokens,
                f"{columns} × {rows} tokens",
                f"a vocabulary of {vocabulary:,.0f}: {rate * height * width / 1e3:.0f} kbit",
            ),
            (decoded, "Decoded", f"{findings.value(f'{fsq}/psnr'):.1f} dB from {rate:.3f} bits per pixel"),
        ]
    )
    return page.facts(_facts(findings, reached, targets))


def _facts(findings: Findings, reached: int, targets: int) -> list[tuple[str, str]]:
    facts = [
        (f"{findings.value('photos/flower/fsq/psnr'):.1f} dB", "flower through FSQ, 0.16 bits per pixel"),
        (f"{100 * findings.value('captions/heldout'):.1f} %", "captions right, held-out combinations"),
        (f"{100 * findings.value('shapes/ar/all/joint'):.1f} %", "drawn token by token, all attributes right"),
        (f"{100 * findings.value('shapes/flow/all/joint'):.1f} %", "drawn by the flow, all attributes right"),
        (f"{reached} of {targets}", "targets reached"),
    ]
    if "everything" in findings.seconds:
        minutes = findings.seconds["everything"] / 60
        facts.append((f"{minutes:.1f} min", f"all training, on {findings.environment['cores']} CPU cores"))
    return facts


def _add_tokens(page: Page, findings: Findings) -> None:
    count = int(findings.value("tokens/fsq/images"))
    page.section(
        "What the tokens hold",
        f"Generators never see a pixel: they learn from a token store, written once from {count:,} pictures of shapes.",
    )
    png = findings.value("tokens/png/bytes")
    rows: list[list[Cell]] = [["PNG files", None, round(png / 1e3), round(png / count), None]]
    for name, words in (("fsq", "FSQ codes"), ("vae", "VAE latents, 16 bits a channel")):
        bits, size, whole = (
            findings.value(f"tokens/{name}/{end}") for end in ("bits_per_image", "bytes", "store_bytes")
        )
        rows.append([words, int(bits), round(size / 1e3), round(size / count), round(whole / 1e3)])
    page.table(
        ["", "Bits per picture", "Files, kB", "Bytes per picture", "With captions and checksums, kB"],
        rows,
        note="A picture has 32 × 32 pixels, 3,072 bytes as it is. FSQ codes are packed: ten bits each.",
    )
    usage: list[list[Cell]] = []
    for path, words in (("photos/china", "China"), ("photos/flower", "Flower"), ("shapes", "Shapes, unseen")):
        tokens, used, perplexity, entropy = (
            findings.value(f"{path}/fsq/{end}") for end in ("tokens", "usage", "perplexity", "entropy")
        )
        usage.append([words, int(tokens), f"{100 * used:.1f} %", perplexity, entropy])
    page.heading("How FSQ uses its codes").table(
        ["", "Tokens", "Codes ever used", "Perplexity", "Marginal entropy, bits per token"],
        usage,
        note=f"{findings.value('photos/china/fsq/vocabulary'):,.0f} codes could carry "
        f"{math.log2(findings.value('photos/china/fsq/vocabulary')):.2f} bits per token; the marginal entropy is what "
        "their frequencies leave of that.",
    )


def _add_learning(page: Page, findings: Findings, histories: Mapping[str, History]) -> None:
    page.section("How it learned", "Losses on the training data, averaged over neighbouring steps.")
    for title, (label, lines) in _CURVES.items():
        series = {name: _curve(histories[run], key) for name, (run, key) in lines.items()}
        page.lines({k: v for k, v in series.items() if v}, "training step", label, title=title, log_y=True)
    if findings.seconds:
        rows: list[list[Cell]] = [[_NAMES.get(stage, stage), s] for stage, s in findings.seconds.items()]
        page.heading("Time").table(
            ["", "Seconds"],
            rows,
            note="Stages run side by side: one core each, and what becomes free goes to whoever has most left to do.",
        )


def _curve(history: History, key: str) -> Points:
    """Means of neighbouring log lines: at most a few dozen points."""
    points = [(row["step"], row[key]) for row in history if row.get(key, 0) > 0]
    if not points:
        return []
    stride = -(-len(points) // _CURVE_POINTS)
    parts = [np.array(points[start : start + stride]).mean(0) for start in range(0, len(points), stride)]
    return [(float(x), float(y)) for x, y in parts]


def _add_protocols(page: Page, findings: Findings) -> None:
    page.section(
        "How every figure was made",
        "A number without its protocol is not a number. All of them, with targets and protocols, are in "
        "`findings.json` beside this page.",
    )
    for name, record in findings.protocols.items():
        page.details(name, {field.replace("_", " "): value for field, value in record.items()})


def _add_commands(page: Page, folder: Path) -> None:
    page.section("Go further", "Everything above was made by commands like these; each is a thin door to a function.")
    page.code(_COMMANDS.format(demo=folder))
