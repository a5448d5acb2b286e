"""Data sets as image folders: exactly what the library makes in memory, and never on top of something else."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.datasets import write_dataset
from tokenizers_mm.data.images import find_images
from tokenizers_mm.data.photos import heldout_photos, training_photos
from tokenizers_mm.data.shapes import Shapes


def test_shapes_are_written_with_their_captions(tmp_path):
    assert write_dataset("shapes", tmp_path / "shapes", count=7, seed=3) == 7
    shapes = Shapes(7, 3, "train")
    notes = [json.loads(line) for line in (tmp_path / "shapes" / "captions.jsonl").read_text().splitlines()]
    assert [note["caption"] for note in notes] == shapes.captions
    for note, image in zip(notes, shapes.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "shapes" / note["file"])), image)
    assert len(find_images(tmp_path / "shapes")) == 7


def test_photographs_are_written_in_two_splits(tmp_path):
    assert write_dataset("photos", tmp_path / "photos") == 11
    for split, photos in {"train": training_photos(), "heldout": heldout_photos()}.items():
        assert {path.stem for path in (tmp_path / "photos" / split).iterdir()} == set(photos)
    china = np.asarray(Image.open(tmp_path / "photos" / "heldout" / "china.png"))
    assert np.array_equal(china, heldout_photos()["china"])


def test_nothing_is_overwritten(tmp_path):
    write_dataset("shapes", tmp_path / "there", count=1)
    for name in ("shapes", "photos"):
        with pytest.raises(ValueError, match="there is not empty: choose another folder"):
            write_dataset(name, tmp_path / "there", count=1)
    assert len(list((tmp_path / "there").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("shape", 1, "data set 'shape': expected one of shapes, photos"),
        ("shapes", 0, "count=0: expected at least 1 image"),
    ],
)
def test_mistakes_write_nothing(tmp_path, name, count, message):
    with pytest.raises(ValueError, match=message):
        write_dataset(name, tmp_path / "new", count=count)
    assert not (tmp_path / "new").exists()
