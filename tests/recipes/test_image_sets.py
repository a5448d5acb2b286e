"""Images by name, and labelled ones for probes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.inputs import image_sets
from recipes.inputs.image_sets import ImageSet, image_set, probe_data
from recipes.inputs.left_out import LeftOut
from tokenizers_mm.data.images import resize_shorter
from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.data.unreadable import TooManyUnreadable


def drawn(split: str, size: int) -> Labelled:
    """Stands for the emoji, whose drawing takes seconds: twenty grey squares, ten of either class."""
    images = np.full((20, size, size, 3), {"train": 1, "test": 2, "all": 3}[split], np.uint8)
    keys = tuple(map(str, range(20)))
    return Labelled(images_NHWC=images, captions=keys, labels_N=np.arange(20) // 10, classes=("a", "b"), keys=keys)


@pytest.fixture(autouse=True)
def _quick_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("emoji", "fashion-mnist"):
        monkeypatch.setitem(image_sets._LABELLED, name, drawn)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        for number in range(6):
            path = tmp_path / part / f"class {number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 12, 3), 20 * number, np.uint8)).save(path)
    return tmp_path


def test_names_stand_for_the_held_out_part(folder: Path) -> None:
    assert image_set("emoji") == ImageSet("emoji", "test")
    assert image_set("emoji").others() == ImageSet("emoji", "train")
    assert image_set("emoji", "train").others() is None
    assert image_set("fashion-mnist:train").title == "fashion-mnist, train"
    assert [pixels.shape for pixels in image_set("photos").pixels(32)] == [(427, 640, 3)] * 2
    assert len(list(image_set("photos:train").pixels(32))) > 2
    chosen = image_set(str(folder))
    assert (chosen.title, chosen.others()) == (folder.name, None)
    assert [pixels.shape for pixels in chosen.pixels(32, limit=5)] == [(9, 12, 3)] * 5
    assert {int(pixels[0, 0, 0]) for pixels in image_set("emoji").pixels(16)} == {2}


def test_probes_get_a_split_or_folds(folder: Path) -> None:
    emoji = probe_data("emoji", 16)
    assert (emoji.name, emoji.test, len(emoji.train), emoji.folds) == ("emoji, all", None, 20, 5)
    assert int(probe_data("emoji:test", 16).train.images_NHWC.max()) == 2
    fashion = probe_data("fashion-mnist", 16)
    assert fashion.test is not None
    assert (int(fashion.train.images_NHWC.max()), int(fashion.test.images_NHWC.max())) == (1, 2)
    split = probe_data(str(folder), 8)
    assert split.test is not None
    assert (len(split.train), len(split.test), split.train.classes) == (6, 6, ("class 0", "class 1"))
    assert split.train.images_NHWC.shape == (6, 8, 8, 3)
    whole = probe_data(str(folder / "train"), 8)
    assert (whole.name, whole.test, len(whole.train)) == ("train", None, 6)


def test_a_limit_takes_images_of_every_class() -> None:
    assert sorted(probe_data("emoji", 16, limit=4).train.labels_N) == [0, 0, 1, 1]


def test_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="images 'photos:all': photos"):
        image_set("photos:all")
    with pytest.raises(ValueError, match=r"exist;.*folder"):
        list(image_set(str(folder / "nowhere")).pixels(8))
    (folder / "test" / "class 0").rename(folder / "test" / "another")
    with pytest.raises(ValueError, match=r"train/ and test/ have other classes"):
        probe_data(str(folder), 8)
    (folder / "test" / "captions.jsonl").write_text(json.dumps({"file": "x.png", "caption": "x"}))
    with pytest.raises(ValueError, match="name no image under"):
        probe_data(str(folder / "test"), 8)


def broken(folder: Path, *keys: str) -> Path:
    """Twenty images of a class each, and files that are none."""
    for number in range(20):
        (folder / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 12, 3), number, np.uint8)).save(folder / "a" / f"{number:02}.png")
    for key in keys:
        (folder / key).parent.mkdir(exist_ok=True)
        (folder / key).write_text("no image")
    return folder


def test_images_that_cannot_be_read_are_left_out_named_and_counted(tmp_path: Path) -> None:
    folder, said = broken(tmp_path / "in", "a/05x.png", "b/z.jpg"), []
    left_out = LeftOut(0.1, said.append)
    for _ in range(2):  # read again, they are not counted twice
        pixels = list(image_set(str(folder)).pixels(8, counter=left_out.counter("images")))
        assert [int(image[0, 0, 0]) for image in pixels] == list(range(20))
    left_out.end()
    assert [line.partition(":")[0] for line in said] == [str(folder / "a/05x.png"), str(folder / "b/z.jpg")]
    assert [error.partition(":")[0] for error in left_out.errors()["images"]] == [line.split(":")[0] for line in said]
    assert list(left_out.errors()) == ["images"]
    # A limit is on the files, so that the sample is theirs: one of the first six is missing.
    assert len(list(image_set(str(folder)).pixels(8, 7, counter=LeftOut(0.5, print).counter("images")))) == 6


def test_above_the_share_there_is_no_sample(tmp_path: Path) -> None:
    folder = broken(tmp_path / "in", "a/05x.png", "b/z.jpg", "b/y.jpg")
    for counter in (LeftOut(0.1, print).counter("images"), None):  # nobody counts: all must be readable
        with pytest.raises(TooManyUnreadable, match=r"in: .* of 23 images.*first: .*05x\.png: header"):
            list(image_set(str(folder)).pixels(8, counter=counter))
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.png").touch()
    for read in (
        lambda counter: list(image_set(str(only)).pixels(8, counter=counter)),
        lambda counter: labelled(only, counter),
    ):
        with pytest.raises(TooManyUnreadable, match=r"only:.*1 images.*first: .*a\.png"):
            read(LeftOut(1.0, print).counter("images"))
    with pytest.raises(ValueError, match=r"max_unreadable=1\.5"):
        LeftOut(1.5)


def labelled(folder: Path, counter) -> Labelled:  # type: ignore[no-untyped-def]
    (folder / "captions.jsonl").write_text('{"file": "a.png", "caption": "x", "label": 0}')
    return probe_data(str(folder), 8, counter=counter).train


def test_many_are_named_in_part_and_then_counted(tmp_path: Path) -> None:
    folder, said = broken(tmp_path / "in", *[f"b/{number}.png" for number in range(5)]), []
    left_out = LeftOut(0.5, said.append)
    list(image_set(str(folder)).pixels(8, counter=left_out.counter("images")))
    list(image_set(str(folder)).pixels(8, counter=left_out.counter("probe")))
    left_out.end()
    assert len(said) == 4  # the same file is not named twice, whatever it was for
    assert said[-1].startswith(f"{folder}: 5 of 25 images")
    assert {purpose: len(errors) for purpose, errors in left_out.errors().items()} == {"images": 5, "probe": 5}


def test_images_that_cannot_be_prepared_are_left_out_too(tmp_path: Path) -> None:
    folder, left_out = broken(tmp_path / "in"), LeftOut(0.1, lambda _: None)
    Image.new("L", (1, 40_000)).save(folder / "a" / "narrow.png")
    pixels = image_set(str(folder)).pixels(
        8, prepare=lambda p: resize_shorter(p, 64), counter=left_out.counter("images")
    )
    assert [image.shape[0] for image in pixels] == [64] * 20
    assert "narrow.png: preprocess: 1 x 40000" in left_out.errors()["images"][0]


def test_labelled_folders_keep_what_belongs_to_the_images_left(tmp_path: Path) -> None:
    folder, left_out = broken(tmp_path / "in", "a/05x.png", "b/z.jpg"), LeftOut(0.1, lambda _: None)
    Image.new("L", (9, 9)).save(folder / "b" / "good.png")
    data = probe_data(str(folder), 8, counter=left_out.counter("probe")).train
    assert (len(data), data.classes, data.keys[-1]) == (21, ("a", "b"), "b/good.png")
    assert data.labels_N.tolist() == [0] * 20 + [1]
    assert data.captions == ("a",) * 20 + ("b",)
    assert [int(image[0, 0, 0]) for image in data.images_NHWC] == [*range(20), 0]
    assert len(left_out.errors()["probe"]) == 2
    with pytest.raises(ValueError, match=r"05x\.png: header"):
        probe_data(str(folder), 8)
