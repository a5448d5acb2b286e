import shutil

import numpy as np
import pytest

from tokenizers_mm.data.labelled import MissingDataError
from tokenizers_mm.data.sets import words as module
from tokenizers_mm.data.sets.words import ALPHABET, find_fonts, words

SHORTEST, LONGEST = 3, 8


def test_words_are_spelled_from_the_alphabet_and_held_out():
    train, test = words("train", 400), words("test", 100)
    for data in (train, test):
        assert all(set(word) <= set(ALPHABET) and SHORTEST <= len(word) <= LONGEST for word in data.captions)
        assert data.labels_N.tolist() == [-1] * len(data)
    assert not set(train.captions) & set(words("test", 400, seed=7).captions)  # whatever seed and count
    assert set("".join(train.captions)) == set(ALPHABET)
    assert len(set(train.captions)) > 300
    assert len(set(train.families_N)) == len(set(train.captions)) < len(train)  # a word is a family


def test_pictures_follow_from_the_arguments():
    data, again, other = words("train", 40, 3), words("train", 40, 3), words("train", 40, 4)
    assert data.captions == again.captions
    assert np.array_equal(data.images_NHWC, again.images_NHWC)
    assert data.captions != other.captions
    assert data.images_NHWC.shape == (40, 32, 96, 3)
    assert words("train", 2, size=(48, 160)).images_NHWC.shape == (2, 48, 160, 3)


def test_letters_stand_out_and_are_inside():
    luma = np.array([0.2126, 0.7152, 0.0722])
    for image in words("test", 100).images_NHWC.astype(float) @ luma:
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert border.std() < 1  # nothing is cut off
        ink = np.abs(image - border[0]) > 0.3 * 255
        assert 20 < ink.sum() < image.size / 2


def test_several_fonts_sizes_and_colours_are_used():
    data = words("train", 100)
    assert len(find_fonts()) >= 8
    grounds = {tuple(image[0, 0]) for image in data.images_NHWC}
    assert len(grounds) > 95
    heights = [np.ptp(np.flatnonzero((image != image[0, 0]).any((1, 2)))) for image in data.images_NHWC]
    assert np.ptp(heights) > 8
    one = [words("train", 20, fonts=[path]).images_NHWC for path in find_fonts()[:2]]
    assert not np.array_equal(*one)


def test_fonts_of_a_folder(tmp_path, monkeypatch):
    chosen = find_fonts()[0]
    (tmp_path / "deep").mkdir()
    shutil.copy(chosen, tmp_path / "deep" / "mine.TTF")
    assert find_fonts(tmp_path) == [tmp_path / "deep" / "mine.TTF"]
    mine, plain = words(count=5, fonts=tmp_path), words(count=5, fonts=[chosen])
    assert np.array_equal(mine.images_NHWC, plain.images_NHWC)
    (tmp_path / "deep" / "mine.TTF").write_bytes(b"no font")
    module._font.cache_clear()
    with pytest.raises(ValueError, match=r"mine\.TTF:"):
        words(count=1, fonts=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match="empty: holds no ttf or otf files"):
        words(fonts=tmp_path / "empty")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "_SYSTEM_FONTS", tmp_path)
    with pytest.raises(MissingDataError, match="pip install matplotlib, or apt-get install fonts-dejavu"):
        words()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "all"}, "split='all': expected one of train, test"),
        ({"count": 0}, "count=0"),
        ({"seed": -1}, "seed=-1"),
        ({"size": (32, 32)}, r"size=\(32, 32\): expected a height of 16 pixels or more and a width of twice"),
        ({"fonts": []}, "at least one font file"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        words(**arguments)
