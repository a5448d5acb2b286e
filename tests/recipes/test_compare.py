"""Tokenizers side by side: the figures are those of `tmm eval`, the pictures are theirs, the page holds them all."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from recipes import cli
from recipes.compare import measure
from recipes.compare.comparison import Comparison, Settings
from recipes.compare.entries import Entry, common_size, entry_of, unique_names
from recipes.compare.measure import compare_tokenizers, in_fresh_process
from recipes.compare.page import write_comparison
from recipes.compare.sampling import evenly_spaced, strided
from recipes.compare.tables import codec_table, figure_tables, tokenizer_table
from recipes.programs.evaluate import Extras, evaluate_images
from tokenizers_mm import Fused, TokenSpec, TowerConfig, build_autoencoder, build_tower, load, save
from tokenizers_mm.data.images import to_tensor
from tokenizers_mm.data.unreadable import TooManyUnreadable
from tokenizers_mm.models.autoencoder import AutoencoderConfig
from tokenizers_mm.nets import ConvConfig
from tokenizers_mm.nets.query import QueryConfig
from tokenizers_mm.nets.transformer import TransformerConfig
from tokenizers_mm.report.cells import WithNote

NET = ConvConfig(channels=8, multipliers=(1,), blocks=1, patch=8, norm="rms")
BOTTLENECKS = {"fsq": {"kind": "fsq", "levels": [4, 4, 4]}, "vae": {"kind": "gaussian", "dim": 3}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tokenizers, as runs leave them and bare, and labelled images of two tones in `tones`."""
    root = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    for name, bottleneck in BOTTLENECKS.items():
        config = AutoencoderConfig(image_size=(32, 32), bottleneck=bottleneck, net=NET, z_channels=3)
        save(build_autoencoder(config).eval(), root / name / "tokenizer")
    tower = build_tower(TowerConfig(name="timm:resnet10t", input_size=96), random_init=True)
    save(tower, root / "tower")
    save(Fused(tower, load(root / "vae" / "tokenizer")), root / "fused")
    for number in range(12):
        path = root / "tones" / ("light" if number % 2 else "dark") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 60, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels + np.uint8(190 * (number % 2))).save(path)
    return root


@pytest.fixture(scope="module")
def comparison(folder: Path) -> Comparison:
    sources = [str(folder / name) for name in ("fsq", "vae", "tower", "fused")]
    settings = Settings(images=str(folder / "tones"), speed=False, pictures=3)
    return compare_tokenizers(sources, settings)


class Reader(HTMLParser):
    """Elements with their attributes, and whether they nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path", "line", "polyline", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_figures_are_those_of_eval(folder: Path, comparison: Comparison) -> None:
    # The fused one takes 32 pixels only, so that is everybody's size.
    assert comparison.settings.size == 32
    images = str(folder / "tones")
    for one in comparison.tokenizers[:2]:
        source = folder / one.entry.name / "tokenizer"
        expected = evaluate_images(source, images, size=32, extras=Extras(probe=images, probe_limit=4000))
        assert one.evaluation.record() == expected.record()
    assert [one.evaluation["Linear probe"].value for one in comparison.tokenizers] == [100, 100, 100, 100]


def test_pictures_are_reconstructions_of_the_same_images(folder: Path, comparison: Comparison) -> None:
    assert [len(one.pictures) for one in comparison.tokenizers] == [3, 3, 0, 3]
    model = load(folder / "vae" / "tokenizer")
    for original, picture in zip(comparison.originals, comparison.tokenizers[1].pictures, strict=True):
        output = model.decode(model.encode(to_tensor(original)[None]))[0].permute(1, 2, 0)
        expected = ((output.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        assert np.array_equal(picture, expected)
        assert not np.array_equal(picture, original)


def test_a_tower_gets_the_pixels_of_the_others_and_has_semantics_only(comparison: Comparison) -> None:
    tower = comparison.tokenizers[2]
    assert tower.value("PSNR") is None
    assert tower.evaluation["Rate"].protocol.crop == "centre 32 x 32"
    hashes = {one.evaluation["Rate"].protocol.reference_sha256 for one in comparison.tokenizers}
    assert len(hashes) == 1


def test_rates_are_nominal_and_spent(comparison: Comparison) -> None:
    fsq, vae, tower, _ = comparison.tokenizers
    assert fsq.rate == pytest.approx(16 * math.log2(64) / 1024)
    assert 0 < (fsq.spent or 0) < fsq.rate
    assert vae.rate == pytest.approx(16 * 16 * 3 / 1024)
    assert vae.spent == vae.value("KL per pixel")
    assert tower.spent is None


def test_tables_have_a_row_each_and_dashes_for_what_was_not_measured(comparison: Comparison) -> None:
    tables = {block.title: block for block in figure_tables(comparison.tokenizers)}
    assert list(tables) == ["Reconstruction", "Information", "Semantics"]
    for block in tables.values():
        assert [row[0] for row in block.rows] == ["fsq", "vae", "tower", "fused"]
    reconstruction = tables["Reconstruction"]
    assert reconstruction.columns[1] == "PSNR, dB"
    cell = reconstruction.rows[0][1]
    assert isinstance(cell, WithNote)
    assert cell.cell == comparison.tokenizers[0].value("PSNR")
    assert cell.note.startswith("12 images: tones; resized shorter side to 32")
    assert reconstruction.rows[2][1:] == (None,) * (len(reconstruction.columns) - 1)
    assert "on 12 images: tones" in tables["Semantics"].note
    what = tokenizer_table(comparison.tokenizers)
    assert [row[3] for row in what.rows[:2]] == ["4 × 4, 1 code of 64", "4 × 4, 3 channels"]
    assert what.rows[3][1].startswith("fused channel-wise: tower timm:resnet10t")  # type: ignore[union-attr]


def test_codecs_stand_at_the_rate_of_each_tokenizer(comparison: Comparison) -> None:
    assert comparison.tiled
    assert comparison.codec_images == 12
    table = codec_table(comparison)
    assert table is not None
    assert [row[0] for row in table.rows] == ["fsq", "vae", "fused"]
    assert "all images side by side in one file" in table.note
    towers = replace(comparison, tokenizers=comparison.tokenizers[2:3])
    assert codec_table(towers) is None


def test_the_page_is_whole_and_needs_nothing_but_itself(comparison: Comparison, tmp_path: Path) -> None:
    page = write_comparison(comparison, tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    reader = Reader(html)
    assert reader.open == []
    assert not re.search(r"https?:|url\(|@import", html)
    pictures = [attributes for tag, attributes in reader.elements if tag == "img" and "data-zoom" in attributes]
    assert len(pictures) == 3 * 4
    assert all(p["alt"] and p["tabindex"] == "0" and str(p["src"]).startswith("data:image/") for p in pictures)
    charts = [a for tag, a in reader.elements if tag == "svg" and a.get("role") == "img"]
    assert [str(chart["aria-label"]).partition(":")[0] for chart in charts] == [
        "PSNR, dB against bits per pixel",
        "linear probe, % against bits per pixel",
        "linear probe, % against PSNR, dB",
    ]
    assert "tower only encodes: no pictures" in html
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [one["name"] for one in record["tokenizers"]] == ["fsq", "vae", "tower", "fused"]
    assert all(figure["protocol"]["samples"] for one in record["tokenizers"] for figure in one["measurements"])
    assert record["codecs"]["jpeg"][0]["bpp"] > 0


def test_every_figure_of_the_record_is_on_the_page_with_its_protocol(comparison: Comparison, tmp_path: Path) -> None:
    html = write_comparison(comparison, tmp_path).read_text(encoding="utf-8")
    told = " ".join(re.findall(r"<summary>(.*?)</summary>", html))
    for one in comparison.tokenizers:
        for figure in one.evaluation.measurements:
            assert figure.name in told
    assert html.count("<dt>reference sha256</dt>") == 4  # probes have none
    assert f"--images {comparison.settings.images} --size 32" in html


def test_encoders_alone_make_a_page_too(comparison: Comparison, tmp_path: Path) -> None:
    towers = replace(comparison, tokenizers=comparison.tokenizers[2:3])
    html = write_comparison(towers, tmp_path).read_text(encoding="utf-8")
    assert "Pictures" not in html
    assert "linear probe" in html
    assert "One tokenizer was given 12 images" in html


def test_speed_is_measured_in_a_process_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def recorded(function, *arguments):  # type: ignore[no-untyped-def]
        calls.append(arguments[0].name)
        return function(*arguments)

    monkeypatch.setattr(measure, "in_fresh_process", recorded)
    settings = Settings(images=str(folder / "tones"), probe="none", limit=4)
    result = compare_tokenizers([str(folder / "fsq"), str(folder / "vae")], settings, names=["a", "b"])
    assert calls == ["a", "b"]
    blocks = {block.title: block for block in figure_tables(result.tokenizers)}
    assert blocks["Speed and memory"].columns[1:] == (
        "Speed, encode, images/s",
        "Speed, decode, images/s",
        "Peak memory, MiB",
    )
    assert "Semantics" not in blocks


def test_apart_is_another_process_and_errors_come_back() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        in_fresh_process(int, "x")


def test_images_that_cannot_be_read_are_left_out_of_everything(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tones", tmp_path / "tones")
    (tmp_path / "tones" / "light" / "1b.png").write_text("no image")
    (tmp_path / "tones" / "light" / "1c.png").write_text("no image")
    settings = Settings(images=str(tmp_path / "tones"), speed=False, pictures=3, max_unreadable=0.2)
    sources = [str(folder / "fsq"), str(folder / "vae")]
    with pytest.warns(UserWarning, match="left out") as said:
        result = compare_tokenizers(sources, settings)
    assert len([one for one in said if "left out" in str(one.message)]) == 2  # once, not by every tokenizer
    clean = compare_tokenizers(sources, replace(settings, images=str(folder / "tones")))
    for one, other in zip(result.tokenizers, clean.tokenizers, strict=True):
        assert one.evaluation.measurements == other.evaluation.measurements
    assert (result.count, result.codecs, result.codec_images) == (12, clean.codecs, clean.codec_images)
    record = json.loads(result.to_json())
    assert [one["images"] for one in record["tokenizers"]] == [{"measured": 12, "left_out": 2}] * 2
    html = write_comparison(result, tmp_path / "page").read_text(encoding="utf-8")
    assert "2 more left out" in html
    assert "--max-unreadable 0.2" in html
    assert "left out" not in write_comparison(clean, tmp_path / "clean").read_text(encoding="utf-8")
    with pytest.raises(TooManyUnreadable, match=r"tones: 2 of 14 images"), pytest.warns(UserWarning, match="left out"):
        compare_tokenizers(sources, replace(settings, max_unreadable=0.1))
    with pytest.raises(ValueError, match=r"max_unreadable=2"):
        replace(settings, max_unreadable=2)


def test_native_sizes_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for number, pixels in enumerate((photo, photo[:37], photo[:, :61])):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    settings = Settings(images=str(tmp_path), speed=False)
    result = compare_tokenizers([str(folder / "fsq"), str(folder / "tower")], settings)
    assert result.settings.size is None
    assert result.settings.probe == "none"
    assert not result.tiled
    shapes = [picture.shape for picture in result.tokenizers[0].pictures]
    assert shapes == [(40, 72, 3), (37, 72, 3), (40, 61, 3)]
    assert result.tokenizers[1].evaluation["Rate"].protocol.crop == "centre 96 x 96"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "0 tokenizers: a comparison takes 1 to 10"),
        (["fsq"] * 11, {}, "11 tokenizers: a comparison takes 1 to 10"),
        (["fsq", "fsq"], {}, "tokenizer '.*fsq' is given twice"),
        (["fsq"], {"size": 33}, "fsq: size=33 is not a multiple of 8"),
        (["fused"], {"size": 64}, "fused takes images of 32 pixels a side only, not 64"),
        (["fsq"], {"images": "nowhere"}, "nowhere: does not exist"),
        (["nothing"], {}, "nothing: no such file or folder"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_is_measured(folder, monkeypatch, names, options, message):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(measure, "evaluate_images", lambda *_, **__: pytest.fail("measured"))
    settings = Settings(**{"images": str(folder / "tones"), "speed": False} | options)
    with pytest.raises(ValueError, match=message):
        compare_tokenizers([str(folder / name) for name in names], settings)


def test_settings_refuse_counts_below_one() -> None:
    for name in ("size", "limit", "probe_limit", "pictures"):
        with pytest.raises(ValueError, match=f"{name}=0: expected at least 1"):
            Settings(images="emoji", **{name: 0})


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert unique_names(["runs/a/tokenizer", "runs/b", "lite0", "timm:vit/x"]) == ["a", "b", "lite0", "timm:vit/x"]
    assert unique_names(["one/vq", "two/vq"]) == ["one/vq", "two/vq"]
    assert unique_names(["x/a", "y/a"], ["first", "second"]) == ["first", "second"]
    for sources, names, message in (
        (["a", "b"], ["x"], "1 names for 2 tokenizers"),
        (["a", "b"], ["x", "x"], "name 'x' is given twice"),
        (["a"], [" "], "name ' ' is given twice, or empty"),
        (["a", "a"], [], "tokenizer 'a' is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            unique_names(sources, names)


def entry(name: str, side: int, *, only: bool = False, encode_only: bool = False) -> Entry:
    spec = TokenSpec(image_size=(side, side), grid=(side // 8, side // 8), dim=4)
    return Entry(
        source=name, name=name, what="", spec=spec, weights=1, only=side if only else None, downsampling=8,
        encode_only=encode_only, fingerprint="", licence="",
    )  # fmt: skip


def test_the_size_is_that_of_those_that_take_no_other() -> None:
    free, small, large = entry("free", 64), entry("small", 32, only=True), entry("large", 48, only=True)
    tower = entry("tower", 224, encode_only=True)
    assert common_size([free, small, tower], "photos", None) == 32
    assert common_size([free, tower], "photos", None) is None
    assert common_size([free, tower], "emoji", None) == 64
    assert common_size([tower], "emoji", None) is None
    assert common_size([free, tower], "emoji", 40) == 40
    with pytest.raises(ValueError, match=r"differ \(small 32,.*48\): choose"):
        common_size([small, large], "photos", None)
    with pytest.raises(ValueError, match=r"image sizes differ \(free 64, other 32\)"):
        common_size([free, entry("other", 32)], "fashion-mnist", None)
    with pytest.raises(ValueError, match=r"images.*48 pixels.*32"):
        common_size([large], "photos", 32)


def test_what_takes_oblong_images_only_is_refused(tmp_path: Path) -> None:
    net = QueryConfig(tokens=4, patch=8, encoder=TransformerConfig(width=16, depth=1, heads=2))
    config = AutoencoderConfig(image_size=(16, 32), bottleneck={"kind": "gaussian", "dim": 2}, net=net, z_channels=2)
    save(build_autoencoder(config).eval(), tmp_path / "words")
    with pytest.raises(ValueError, match=r"images.*\(16, 32\).*comparison"):
        entry_of(str(tmp_path / "words"), "words")


def test_strided_keeps_a_regular_part_of_any_length() -> None:
    for count in range(1, 70):
        kept = strided(range(count), 8)
        assert kept == list(range(0, count, kept[1] if len(kept) > 1 else 1))
        assert min(count, 5) <= len(kept) <= 8
    assert strided(range(3), 8) == [0, 1, 2]
    assert evenly_spaced("abcdefghi", 3) == ["a", "e", "i"]
    assert evenly_spaced("ab", 5) == ["a", "b"]


def test_the_command_writes_both_files(folder: Path, tmp_path: Path) -> None:
    arguments = [
        "compare",
        folder / "fsq",
        folder / "vae",
        "--images",
        folder / "tones",
        "--out",
        tmp_path,
        "--limit",
        4,
    ]
    arguments += ["--name", "small", "--name", "smaller", "--no-speed", "--probe", "none", "--pictures", 2]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"open {tmp_path / 'index.html'}" in result.output
    assert "measuring small: fsq, conv net" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "compare.json"}
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Side by side: small, smaller" in html
    assert "--name small --name smaller" in html
