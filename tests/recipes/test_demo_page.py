from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from recipes.demo.page import write_demo_page
from recipes.gates.figures import Example, Findings


def words(html: str) -> str:
    """The text a reader sees."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def section(html: str, title: str) -> str:
    return next(part for part in html.split("<section")[1:] if f"</span>{title}</h2>" in part)


@pytest.fixture
def copy(demo_folder: Path, findings: Findings, tmp_path: Path) -> Path:
    """What the page reads, to be spoiled."""
    shutil.copytree(demo_folder / "pictures", tmp_path / "pictures")
    for history in demo_folder.glob("*/history.jsonl"):
        (tmp_path / history.parent.name).mkdir()
        shutil.copy(history, tmp_path / history.parent.name)
    return tmp_path


def page(findings: Findings, folder: Path) -> str:
    return write_demo_page(findings, folder, folder / "index.html").read_text()


def everything_reached(findings: Findings) -> Findings:
    figures = {}
    for path, figure in findings.figures.items():
        goal = figure.at_least if figure.at_least is not None else figure.at_most
        figures[path] = figure if goal is None else replace(figure, value=goal)
    return replace(findings, figures=figures)


def test_the_page_shows_every_part(findings: Findings, copy: Path) -> None:
    html = page(findings, copy)
    titles = re.findall(r"<h2><span>\d</span>(.*?)</h2>", html)
    assert titles == [
        "Held-out photographs",
        "Shapes that can be checked",
        "What the tokens hold",
        "How it learned",
        "How every figure was made",
        "Go further",
    ]
    assert section(html, titles[0]).count("<img") == 20
    assert section(html, titles[1]).count("<img") == 3 * 8 + 3 * 16
    assert section(html, titles[3]).count("<svg") == 4
    assert section(html, titles[4]).count("<details") == len(findings.protocols)
    assert html.count("<h1>") == html.count('class="strip"') == 1
    assert str(findings.environment["torch"]) in html


def test_every_figure_of_the_findings_is_on_the_page(findings: Findings, copy: Path) -> None:
    text = words(page(findings, copy))
    for path, figure in findings.figures.items():
        if path.startswith("photos") and path.endswith("psnr"):
            assert f" {figure.value:.2f} " in text or f" {figure.value:.3f} " in text, path
        elif figure.unit == "share":
            assert f"{100 * figure.value:.1f} %" in text, path


def test_missed_says_missed_and_reached_says_reached(findings: Findings, copy: Path) -> None:
    good = everything_reached(findings)
    html = page(good, copy)
    assert [words(row) for row in re.findall(r"<tr>.*?</tr>", html) if "missed" in row] == []
    assert "They reached 26 of 26 targets." in html
    for path in ("photos/flower/vae/psnr", "captions/heldout", "shapes/flow/copies", "shapes/ar/all/shape"):
        figure = good[path]
        worse = figure.at_most + 0.01 if figure.at_most is not None else (figure.at_least or 0) - 0.01
        html = page(replace(good, figures={**good.figures, path: replace(figure, value=worse)}), copy)
        assert "They reached 25 of 26 targets; those they missed are marked" in html
        assert "✗ missed" in words(html)


def test_a_failed_control_says_so(findings: Findings, copy: Path) -> None:
    good = everything_reached(findings)
    leak = replace(good["control/ar_null/joint"], value=0.5)
    html = page(replace(good, figures={**good.figures, "control/ar_null/joint": leak}), copy)
    row = next(row for row in re.findall(r"<tr>.*?</tr>", html) if "Token by token, no caption" in row)
    assert "✗ missed" in words(row)


def test_who_beats_whom_is_said_in_words(findings: Findings, copy: Path) -> None:
    figures = dict(findings.figures)
    for path, value in {
        "china/fsq": 20.0,
        "china/jpeg_at_fsq": 20.4,
        "flower/fsq": 26.0,
        "flower/jpeg_at_fsq": 24.5,
    }.items():
        figures[f"photos/{path}/psnr"] = replace(figures[f"photos/{path}/psnr"], value=value)
    text = words(page(replace(findings, figures=figures), copy))
    assert "JPEG is 0.4 dB ahead on china and 1.5 dB behind on flower." in text


def test_the_perceptual_column_is_there_when_it_was_measured(findings: Findings, copy: Path) -> None:
    assert "Lite0" not in page(findings, copy)
    figures = dict(findings.figures)
    for path, figure in findings.figures.items():
        if path.startswith("photos") and path.endswith("/ssim"):
            figures[path.replace("ssim", "perceptual")] = replace(figure, value=0.1234)
    environment = {**findings.environment, "perceptual": "Lite0 perceptual"}
    html = page(replace(findings, figures=figures, environment=environment), copy)
    assert html.count(">Lite0 perceptual</th>") == 2
    assert html.count("0.123<") == 12


def test_wrong_pictures_say_what_was_read(findings: Findings, copy: Path) -> None:
    rows = [Example(caption="small red circle top left", read="small red cross top right", right=False)] * 16
    html = page(replace(findings, examples={**findings.examples, "ar_samples": rows}), copy)
    assert "small red circle top left (read: cross, top right)" in words(html)


def test_captions_of_nonsense_are_shown_safely(findings: Findings, copy: Path) -> None:
    texts = ["", "\x00\x1b\n" + "<b>" * 90, "large red square middle left"]
    rows = [Example(caption="large red square middle left", read=text, right=text == texts[2]) for text in texts]
    gallery = section(
        page(replace(findings, examples={**findings.examples, "captions": rows}), copy), "Shapes that can be checked"
    )
    assert "(nothing)" in gallery
    assert "···&lt;b&gt;" in gallery
    assert "<b>" * 2 not in gallery
    assert "\x1b" not in gallery


def test_a_quick_run_is_called_one(findings: Findings, copy: Path) -> None:
    assert "quick run" not in page(findings, copy)
    for history in copy.glob("*/history.jsonl"):
        history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))
    assert "This was a quick run of 20 steps" in page(findings, copy)


def test_curves_are_those_of_the_histories(findings: Findings, copy: Path) -> None:
    history = copy / "shapes_flow" / "history.jsonl"
    history.write_text("".join(json.dumps({"step": s, "loss": 1, "velocity": 2.0 - s / 10}) + "\n" for s in range(10)))
    learned = section(page(findings, copy), "How it learned")
    lines = re.findall(r'points="(.*?)"', learned)
    assert [len(line.split()) for line in lines] == [50] * 6 + [10]
    heights = [float(point.split(",")[1]) for point in lines[-1].split()]
    assert heights == sorted(heights)


def test_a_page_without_seconds_has_no_table_of_time(findings: Findings, copy: Path) -> None:
    assert "9.5 min" in words(page(findings, copy))
    html = page(replace(findings, seconds={}), copy)
    assert "min" not in words(html.partition("</header>")[0].partition('class="facts"')[2])
    assert "<h3>Time</h3>" not in html


def test_what_is_missing_is_named(findings: Findings, copy: Path) -> None:
    (copy / "pictures" / "china_vae.png").unlink()
    with pytest.raises(ValueError, match=r"china_vae\.png: is missing; measure_demo writes it"):
        page(findings, copy)
    (copy / "shapes_ar" / "history.jsonl").unlink()
    with pytest.raises(ValueError, match=r"shapes_ar.history\.jsonl: cannot.*finished"):
        page(findings, copy)
