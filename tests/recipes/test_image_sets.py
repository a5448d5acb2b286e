"""Images by name, and labelled ones for probes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes import image_sets
from recipes.image_sets import ImageSet, image_set, probe_data
from tokenizers_mm.data.labelled import Labelled


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
    with pytest.raises(ValueError, match="images 'photos:all': photos has the parts train, test"):
        image_set("photos:all")
    with pytest.raises(ValueError, match="does not exist; give a folder of images"):
        list(image_set(str(folder / "nowhere")).pixels(8))
    (folder / "test" / "class 0").rename(folder / "test" / "another")
    with pytest.raises(ValueError, match=r"train/ and test/ have other classes"):
        probe_data(str(folder), 8)
    (folder / "test" / "captions.jsonl").write_text(json.dumps({"file": "x.png", "caption": "x"}))
    with pytest.raises(ValueError, match="name no image under"):
        probe_data(str(folder / "test"), 8)
