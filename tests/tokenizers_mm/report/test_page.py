from __future__ import annotations

import base64
import io
import re
import stat
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenizers_mm.report.cells import Cell, Share, WithNote
from tokenizers_mm.report.page import Page
from tokenizers_mm.report.picture import Pixels, false_colour

VOID = {"meta", "img", "path", "line", "polyline", "br"}
NASTY = '<script>alert("x")</script> & "quotes"'


class Reader(HTMLParser):
    """Checks that elements nest, and keeps every attribute and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def picture(height: int = 32, width: int = 32, seed: int = 0) -> Pixels:
    pixels: Pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels


@pytest.fixture
def page() -> Page:
    """A page with every component, and hostile text in every place that takes text."""
    page = Page(NASTY, NASTY, eyebrow=NASTY)
    page.strip([(picture(), NASTY, NASTY), (false_colour(np.arange(16).reshape(4, 4)), NASTY, NASTY)])
    page.facts([("27.2 dB", NASTY), (NASTY, "b")])
    page.section(NASTY, NASTY).heading(NASTY, NASTY).text(NASTY)
    page.figure({NASTY: [(picture(), NASTY), (picture(200, 300), NASTY)]}, [NASTY, "b"], note=NASTY)
    page.gallery([picture()] * 3, [NASTY] * 3, [True, False, None], note=NASTY)
    page.section("Second").table([NASTY, "n", "done"], [[NASTY, 1.5, True], ["b", Share(0.5, 0.9), False]], note=NASTY)
    page.lines({NASTY: [(0, 1), (1, 2)]}, NASTY, NASTY, title=NASTY, target=1.5)
    page.scatter({NASTY: [(1, 1), (2, 2)]}, NASTY, NASTY, title=NASTY, lines={"c": [(1, 1), (2, 2)]}, level=(NASTY, 1))
    page.table([NASTY], [[WithNote(NASTY, NASTY)]])
    page.code(f"# {NASTY}\n{NASTY}").details(NASTY, {NASTY: NASTY})
    return page.footer(NASTY)


def test_elements_nest_and_everything_is_closed(page: Page) -> None:
    assert Reader(page.html()).open == []


def test_text_is_escaped_everywhere(page: Page) -> None:
    reader = Reader(page.html())
    assert len(reader.all("script")) == 1
    assert sum(NASTY in word for word in reader.words) > 20
    assert 'alert("x")' not in page.html()


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    html = page.html()
    reader = Reader(html)
    for _, attributes in reader.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "data", "action", "xlink:href") and value is not None:
                assert value.startswith(("data:image/", "#"))
    assert not re.search(r"url\(|@import|https?:", html)
    assert {"link", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in reader.elements)
    policy = next(m["content"] for m in reader.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_links_lead_to_sections(page: Page) -> None:
    reader = Reader(page.html())
    targets = [f"#{section['id']}" for section in reader.all("section")]
    assert [link["href"] for link in reader.all("a")] == targets == ["#s1", "#s2"]


def test_small_pictures_are_kept_exactly_and_large_ones_nearly() -> None:
    smooth = np.repeat(np.linspace(0, 255, 300, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    html = Page("t", "l").section("s").gallery([picture(), smooth], ["a", "b"]).html()
    images = [image for image in Reader(html).all("img") if "data-zoom" in image]
    decoded = []
    for image in images:
        assert image["src"] is not None
        data = base64.b64decode(image["src"].partition(",")[2])
        decoded.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.array_equal(decoded[0], picture())
    assert np.abs(decoded[1].astype(int) - smooth).max() <= 4
    assert (images[0]["class"], images[1]["class"]) == ("pixels tiny", "wide")


def test_tables_align_numbers_and_read_marks() -> None:
    rows: Sequence[Sequence[Cell]] = [["FSQ", 24.45, 1000, True, None], ["VAE", 25.3, None, False, "≥ 2"]]
    html = Page("t", "l").section("s").table(["name", "dB", "codes", "goal", "at"], rows).html()
    cells = re.findall(r"<td( class=\"number\")?>(.*?)</td>", html)
    texts = [re.sub("<.*?>", "", text).strip() for _, text in cells]
    assert texts == ["FSQ", "24.45", "1,000", "✓ reached", "–", "VAE", "25.30", "–", "✗ missed", "≥ 2"]
    assert [bool(kind) for kind, _ in cells[:5]] == [False, True, True, False, True]


def test_shares_draw_a_bar_and_their_target() -> None:
    html = Page("t", "l").section("s").table(["x"], [[Share(0.256, 0.9)]]).html()
    assert "25.6 %" in html
    assert '<i style="width:25.6%"></i><u style="left:90.0%"></u>' in html


def test_charts_put_points_where_they_belong() -> None:
    html = Page("t", "l").section("s").lines({"a": [(0, 0), (50, 50), (100, 100)]}, "x", "y").html()
    (points,) = re.findall(r'points="(.*?)"', html)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert (x0 + x2) / 2 == pytest.approx(x1, abs=0.11)
    assert (y0 + y2) / 2 == pytest.approx(y1, abs=0.11)
    assert x0 < x2
    assert y0 > y2


def test_logarithmic_charts_space_decades_evenly() -> None:
    html = Page("t", "l").section("s").lines({"a": [(0, 1), (1, 10), (2, 100)]}, "x", "y", log_y=True).html()
    (points,) = re.findall(r'points="(.*?)"', html)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)


def test_charts_leave_out_what_cannot_be_drawn_and_thin_long_series() -> None:
    long = [(float(step), 1.0 + step) for step in range(10_001)]
    page = Page("t", "l").section("s").lines({"a": [(0, float("nan")), (1, 1.0), (2, 2.0)], "b": long}, "x", "y")
    first, second = re.findall(r'points="(.*?)"', page.html())
    assert len(first.split()) == 2
    assert 300 <= len(second.split()) <= 401
    flat = Page("t", "l").section("s").lines({"a": [(1, 3.0)]}, "x", "y").html()
    assert "nan" not in flat


def test_names_of_lines_that_end_together_do_not_overlap() -> None:
    html = (
        Page("t", "l")
        .section("s")
        .lines({n: [(0, 0), (1, 1 + i / 1e6)] for i, n in enumerate("abcd")}, "x", "y")
        .html()
    )
    heights = sorted(float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)" class="name"', html))
    assert len(heights) == 4
    assert min(b - a for a, b in pairwise(heights)) >= 16.9


def scatter(marks: dict[str, list[tuple[float, float]]], **options: Any) -> str:
    return Page("t", "l").section("s").scatter(marks, "x", "y", **options).html()


def signs(html: str) -> list[tuple[float, float, str, str]]:
    """Place, shape and style of every sign."""
    found = re.findall(r'<path transform="translate\(([\d.]+) ([\d.]+)\)" d="(.*?)" style="(.*?)"/>', html)
    return [(float(x), float(y), shape, style) for x, y, shape, style in found]


def test_marks_stand_where_they_belong_the_first_one_filled() -> None:
    html = scatter({"a": [(100, 4), (1, 4)], "b": [(10, 2)]}, log_x=True)
    hollow, filled, middle, *names = signs(html)
    assert (hollow[0] + filled[0]) / 2 == pytest.approx(middle[0], abs=0.11)
    assert hollow[0] < filled[0]
    assert hollow[1] == filled[1] < middle[1]
    assert hollow[3].endswith("fill:var(--paper)")
    assert filled[3] == "stroke:var(--s0);fill:var(--s0)"
    assert [name[2:] for name in names] == [filled[2:], middle[2:]]
    assert middle[2] != filled[2]
    assert "<title>a: 4 at 100</title>" in html
    assert 'aria-label="y against x: a 4 at 100, 4 at 1; b 2 at 10"' in html


def test_a_name_without_points_keeps_its_sign_for_the_next_chart() -> None:
    both = signs(scatter({"a": [(1, 1)], "b": [(2, 2)]}))
    alone = signs(scatter({"a": [], "b": [(2, 2)]}))
    assert {sign[2:] for sign in alone} == {both[1][2:]}
    assert len(alone) == 2
    assert ">a<" not in scatter({"a": [], "b": [(2, 2)]})


def test_curves_are_cut_off_where_the_axes_end() -> None:
    marks: dict[str, list[tuple[float, float]]] = {"a": [(0.0, 0.0)], "b": [(10.0, 10.0)]}
    html = scatter(marks, lines={"c": [(-5, -5), (40, 40)], "outside": [(50, 50), (60, 60)]})
    (points,) = re.findall(r'stroke-dasharray="6 3" points="(.*?)"', html)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert 5 < len(places) < 20
    assert max(x for x, _ in places) <= 520 - 164
    assert min(y for _, y in places) >= 34
    assert ">outside<" not in html
    # And the curve lies on the diagonal of the marks.
    low, high = signs(html)[:2]
    for x, y in places:
        assert (x - low[0]) / (high[0] - low[0]) == pytest.approx((y - low[1]) / (high[1] - low[1]), abs=0.01)


def test_noted_cells_say_more_and_are_numbers_all_the_same() -> None:
    html = Page("t", "l").section("s").table(["x"], [[WithNote(1.25, "of 3")], [WithNote(0.5, "of 4")], [None]]).html()
    assert re.findall(r'<td class="number">(.*?)</td>', html) == [
        '<span title="of 3">1.25</span>',
        '<span title="of 4">0.50</span>',
        "–",
    ]


def test_false_colour_is_a_function_of_the_code() -> None:
    codes = np.array([[5, 6], [5, 64_000]])
    pixels = false_colour(codes)
    assert pixels.shape == (2, 2, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[0, 0], pixels[1, 0])
    assert np.abs(pixels[0, 0].astype(int) - pixels[0, 1]).max() > 30
    assert len(np.unique(false_colour(np.arange(64).reshape(8, 8)).reshape(-1, 3), axis=0)) == 64


def test_backticks_are_code_and_remarks_are_not_commands() -> None:
    html = Page("t", "run `make demo` & wait").section("s").code("# remark\ntmm demo").html()
    assert "run <code>make demo</code> &amp; wait" in html
    assert '<span class="remark"># remark</span>\n<span class="prompt">$ </span>tmm demo' in html


def test_writing_is_atomic_and_leaves_nothing_behind(page: Page, tmp_path: Path) -> None:
    target = tmp_path / "out" / "index.html"
    assert page.write(target) == target
    page.write(target)
    assert target.read_text(encoding="utf-8") == page.html()
    assert [path.name for path in target.parent.iterdir()] == ["index.html"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_style_follows_light_and_dark_and_keeps_pixels_crisp(page: Page) -> None:
    html = page.html()
    assert "prefers-color-scheme: dark" in html
    assert "image-rendering: pixelated" in html
    assert "width=device-width" in html


def test_bad_content_is_refused() -> None:
    page = Page("t", "l").section("s")
    with pytest.raises(ValueError, match=r"picture 'a'.*float32 \(4, 4, 3\): expected uint8"):
        page.gallery([np.zeros((4, 4, 3), np.float32)], ["a"])
    with pytest.raises(ValueError, match="2 images, 1 captions and 2 marks"):
        page.gallery([picture()] * 2, ["a"])
    with pytest.raises(ValueError, match=r"'r'.*1 pictures.*2 columns"):
        page.figure({"r": [(picture(), "")]}, ["a", "b"])
    with pytest.raises(ValueError, match="has 1 cells for 2 columns"):
        page.table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match="series 'a' has no finite positive point"):
        page.lines({"a": [(0, -1.0)]}, "x", "y", log_y=True)
    with pytest.raises(ValueError, match="series has 7 lines"):
        page.lines({str(i): [(0, 1)] for i in range(7)}, "x", "y")
    for marks in ({}, {"a": []}, {str(i): [(0.0, 1.0)] for i in range(13)}):
        with pytest.raises(ValueError, match=r"chart takes.*12,"):
            page.scatter(marks, "x", "y")
    for bad in ((0.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match=r"'a'.*: expected.*positive"):
            page.scatter({"a": [bad]}, "x", "y", log_x=True)
    with pytest.raises(ValueError, match=r"\['a'\] name both marks and lines"):
        page.scatter({"a": [(1, 1)]}, "x", "y", lines={"a": [(1, 1), (2, 2)]})
    with pytest.raises(ValueError, match=r"value=1\.2: a share lies in 0\.\.1"):
        Share(1.2)
    with pytest.raises(ValueError, match="strip has no stages"):
        page.strip([])
