"""Data sets as image folders: exactly what the library makes in memory, and never on top of something else."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.programs.datasets import write_dataset
from tokenizers_mm.data.annotated import labelled_folder
from tokenizers_mm.data.images import find_images
from tokenizers_mm.data.labelled import MissingDataError
from tokenizers_mm.data.sets.emoji import emoji
from tokenizers_mm.data.sets.fashion import fashion_mnist
from tokenizers_mm.data.sets.photos import heldout_photos, training_photos
from tokenizers_mm.data.sets.shapes import Shapes
from tokenizers_mm.data.sets.words import words

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_NAMES = """# group: Animals & Nature
1F98A ; fully-qualified # 🦊 E3.0 fox
1F42F ; fully-qualified # 🐯 E0.6 tiger face
# group: Food & Drink
1F353 ; fully-qualified # 🍓 E0.6 strawberry
1F34B ; fully-qualified # 🍋 E1.0 lemon
1F346 ; fully-qualified # 🍆 E0.6 eggplant
"""


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


def same(folder, data, size):
    """What was written is what is in memory, images, captions and labels."""
    read = labelled_folder(folder, size)
    order = [data.keys.index(Path(key).stem) for key in read.keys]
    assert np.array_equal(read.images_NHWC, data.images_NHWC[order])
    assert read.captions == tuple(data.captions[i] for i in order)
    assert read.labels_N.tolist() == data.labels_N[order].tolist()
    assert read.classes == data.classes


@pytest.mark.skipif(not EMOJI_FONT.exists(), reason="needs Debian's fonts-noto-color-emoji")
def test_emoji_are_written_with_names_and_groups(tmp_path):
    os.symlink(EMOJI_FONT, tmp_path / EMOJI_FONT.name)
    (tmp_path / "emoji-test.txt").write_text(EMOJI_NAMES, encoding="utf-8")
    assert write_dataset("emoji", tmp_path / "out", size=24, source=tmp_path) == 5
    for split in ("train", "test"):
        same(tmp_path / "out" / split, emoji(split, 24, folder=tmp_path), 24)
    assert json.loads((tmp_path / "out" / "test" / "classes.json").read_text()) == ["Animals & Nature", "Food & Drink"]


def test_clothes_are_written_with_classes(tmp_path):
    for prefix, count in (("train", 4), ("t10k", 2)):
        pixels = np.random.default_rng(0).integers(256, size=(count, 28, 28), dtype=np.uint8)
        for part, array in (("images-idx3", pixels), ("labels-idx1", np.arange(count, dtype=np.uint8))):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes()
            (tmp_path / f"{prefix}-{part}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    assert write_dataset("fashion-mnist", tmp_path / "out", source=tmp_path) == 6
    for split in ("train", "test"):
        same(tmp_path / "out" / split, fashion_mnist(split, folder=tmp_path), 32)


def test_words_are_written_with_held_out_ones(tmp_path):
    assert write_dataset("words", tmp_path / "out", count=20, seed=5) == 22
    test = words("test", 2, 5)
    notes = [json.loads(line) for line in (tmp_path / "out" / "test" / "captions.jsonl").read_text().splitlines()]
    assert [note["caption"] for note in notes] == list(test.captions)
    assert "label" not in notes[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "test" / notes[1]["file"])), test.images_NHWC[1])


def test_missing_packages_write_nothing(tmp_path):
    for name, package in (("emoji", "fonts-noto-color-emoji"), ("fashion-mnist", "dataset-fashion-mnist")):
        with pytest.raises(MissingDataError, match=f"apt-get install {package}"):
            write_dataset(name, tmp_path / "out", source=tmp_path)
    with pytest.raises(ValueError, match="size=64: photographs are written as they are"):
        write_dataset("photos", tmp_path / "out", size=64)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path):
    write_dataset("shapes", tmp_path / "there", count=1)
    for name in ("shapes", "photos"):
        with pytest.raises(ValueError, match="there is not empty: choose another folder"):
            write_dataset(name, tmp_path / "there", count=1)
    assert len(list((tmp_path / "there").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("shape", 1, "data set 'shape': expected one of emoji, fashion-mnist, photos, shapes, words"),
        ("shapes", 0, "count=0: expected at least 1 image"),
    ],
)
def test_mistakes_write_nothing(tmp_path, name, count, message):
    with pytest.raises(ValueError, match=message):
        write_dataset(name, tmp_path / "new", count=count)
    assert not (tmp_path / "new").exists()
