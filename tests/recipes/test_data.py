"""Data kinds of recipes: each builds the source that it says."""

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from recipes.schema.data import EmojiImages, FashionImages, FolderImages, ImageData, PhotoCrops, ShapeImages, WordImages
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.data.annotated import CaptionedFolder, LabelledImages
from tokenizers_mm.data.crops import RandomCrops
from tokenizers_mm.data.folder import ImageFolder
from tokenizers_mm.data.labelled import MissingDataError
from tokenizers_mm.data.sets.words import words
from tokenizers_mm.data.sources import draws_for

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FASHION = Path("/usr/share/datasets/fashion-mnist")


def test_sources_are_what_the_recipe_says(tmp_path):
    photos, shapes = PhotoCrops(crop=24, max_downscale=2).source(), ShapeImages(count=5, seed=3, image_size=16).source()
    assert isinstance(photos, RandomCrops)
    assert (photos.crop, photos.max_downscale, len(photos.photos)) == (24, 2, 9)
    assert photos.batch(draws_for(len(photos), 0, 0, 2)).shape == (2, 3, 24, 24)
    assert shapes.batch(draws_for(len(shapes), 0, 0, 5)).shape == (5, 3, 16, 16)
    with pytest.raises(ValueError, match="found an empty folder, no images"):
        FolderImages(path=str(tmp_path), size=8).source()
    (tmp_path / "a.png").write_bytes(b"")
    folder = FolderImages(path=str(tmp_path), size=8, flip=False).source()
    assert isinstance(folder, ImageFolder)
    assert (folder.size, folder.flip, folder.crop) == (8, False, "random")


def test_words_come_with_their_text():
    source = WordImages(split="test", count=6, seed=2, height=16, width=64).source()
    batch = source.batch(draws_for(6, 0, 0, 6))
    assert batch.image_BCHW.shape == (6, 3, 16, 64)
    assert sorted(batch.captions) == sorted(words("test", 6, 2).captions)
    assert batch.labels_B is None


@pytest.mark.skipif(not EMOJI_FONT.exists(), reason="needs Debian's fonts-noto-color-emoji")
def test_emoji_come_with_names_and_groups(tmp_path):
    os.symlink(EMOJI_FONT, tmp_path / EMOJI_FONT.name)
    lines = (
        "# group: A\n1F98A ; fully-qualified # x E3.0 fox\n# group: B\n1F353 ; fully-qualified # x E0.6 strawberry\n"
    )
    (tmp_path / "emoji-test.txt").write_text(lines)
    source = EmojiImages(split="all", image_size=16, flip=True, shift=1, folder=str(tmp_path)).source()
    assert isinstance(source, LabelledImages)
    assert (source.flip, source.shift, source.fixed) == (True, 1, False)
    batch = source.batch(draws_for(2, 0, 0, 2))
    assert batch.image_BCHW.shape == (2, 3, 16, 16)
    assert set(zip(batch.captions, batch.labels_B.tolist(), strict=True)) == {("fox", 0), ("strawberry", 1)}


def test_missing_data_sets_name_their_package(tmp_path):
    for data, package in ((EmojiImages, "fonts-noto-color-emoji"), (FashionImages, "dataset-fashion-mnist")):
        with pytest.raises(MissingDataError, match=f"apt-get install {package}"):
            data(folder=str(tmp_path)).source()
    with pytest.raises(MissingDataError, match="holds no ttf or otf files"):
        WordImages(fonts=str(tmp_path)).source()


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_the_first_so_many_clothes():
    every, first = FashionImages(split="test").source(), FashionImages(split="test", count=30).source()
    assert (len(every), len(first)) == (10_000, 30)
    assert first.keys == every.keys[:30]
    assert np.array_equal(first.data.images_NHWC, every.data.images_NHWC[:30])
    with pytest.raises(ValueError, match="count=10001: fashion-mnist, test has 10000 images"):
        FashionImages(split="test", count=10_001).source()


def test_folders_carry_captions_where_asked(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / "1.png")
    source = FolderImages(path=str(tmp_path), size=8, captions=True, crop="centre").source()
    assert isinstance(source, CaptionedFolder)
    batch = source.batch(draws_for(2, 0, 0, 2))
    assert sorted(zip(batch.captions, batch.labels_B.tolist(), strict=True)) == [("cat", 0), ("dog", 1)]


def test_folders_pass_over_a_stated_share_of_unreadable_images(tmp_path):
    for captions in (False, True):
        data = FolderImages(path=str(tmp_path), size=8, max_unreadable=0.5, captions=captions)
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "cat" / "1.png")
        assert data.source().max_unreadable == 0.5
    with pytest.raises(ValueError, match=r"max_unreadable=-1: expected a share"):
        FolderImages(path="x", size=8, max_unreadable=-1)


def test_features_need_images_that_stay_the_same(tmp_path):
    for changes in ({"flip": True, "crop": "centre"}, {"flip": False, "crop": "random"}):
        with pytest.raises(ValueError, match=r"features=x.*flip=.*: cached features"):
            FolderImages(path="y", size=8, features="x", **changes)
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="is not a token store"):
        FolderImages(path=str(tmp_path), size=8, features=str(tmp_path), flip=False, crop="centre").source()


def test_kinds_are_told_apart_and_mistakes_are_named():
    known = {member.kind for member in get_args(get_args(ImageData)[0])}
    assert known == {"photos", "shapes", "emoji", "fashion-mnist", "words", "folder"}
    for kind in known - {"folder"}:
        assert parse(ImageData, {"kind": kind}, "data").kind == kind
    for kind, key in (
        ("emoji", "image_size"),
        ("fashion-mnist", "image_size"),
        ("fashion-mnist", "count"),
        ("words", "count"),
    ):
        with pytest.raises(ConfigError, match=f"{key}=0: expected at least 1"):
            parse(ImageData, {"kind": kind, key: 0}, "data")
    with pytest.raises(ConfigError, match="split = 'heldout'"):
        parse(ImageData, {"kind": "emoji", "split": "heldout"}, "data")
