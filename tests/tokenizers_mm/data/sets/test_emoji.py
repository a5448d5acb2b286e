"""Emoji: drawn right, named right, and no near-duplicates on both sides of a split."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tokenizers_mm.data.labelled import MissingDataError
from tokenizers_mm.data.sets import emoji as module
from tokenizers_mm.data.sets.emoji import emoji, family

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
installed = pytest.mark.skipif(
    not (FONT.exists() and NAMES.exists()), reason="needs Debian's fonts-noto-color-emoji and unicode-data"
)

LISTING = """# emoji-test.txt
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
2764 FE0F                                  ; fully-qualified     # ❤️ E0.6 red heart
2764                                       ; unqualified         # ❤ E0.6 red heart
# group: Component
1F3FB                                      ; component           # 🏻 E1.0 light skin tone
# group: Flags
1F1F3 1F1F4                                ; fully-qualified     # 🇳🇴 E2.0 flag: Norway
1F1E7 1F1FB                                ; fully-qualified     # 🇧🇻 E2.0 flag: Bouvet Island
1F468 200D 1F680                           ; fully-qualified     # 👨‍🚀 E4.0 man astronaut
"""


@pytest.fixture
def folder(tmp_path):
    if not FONT.exists():
        pytest.skip("needs Debian's fonts-noto-color-emoji")
    os.symlink(FONT, tmp_path / FONT.name)
    (tmp_path / NAMES.name).write_text(LISTING, encoding="utf-8")
    return tmp_path


def test_pictures_names_and_groups(folder):
    data = emoji(size=64, folder=folder)
    assert data.captions == ("grinning face", "red heart", "flag: Norway", "man astronaut")  # Bouvet Island: same flag
    assert data.keys == ("1f600", "2764-fe0f", "1f1f3-1f1f4", "1f468-200d-1f680")
    assert data.classes == ("Smileys & Emotion", "Flags")
    assert data.labels_N.tolist() == [0, 0, 1, 1]
    assert data.images_NHWC.shape == (4, 64, 64, 3)
    face, heart, _, astronaut = data.images_NHWC.astype(int)
    assert (face[[0, 0, -1, -1], [0, -1, 0, -1]] > 250).all()  # white corners
    assert (face[..., 0] - face[..., 2]).mean() > 60  # yellow: far more red than blue
    assert heart[32, 32, 0] > 150 > 100 > heart[32, 32, 1:].max()  # red
    assert len(np.unique(astronaut.reshape(-1, 3), axis=0)) > 100  # one joined picture, in colour
    assert min(astronaut[:, :3].min(), astronaut[:, -3:].min()) > 240  # and not two side by side, cut off


def test_splits_are_parts_of_the_whole(folder):
    whole, train, test = (emoji(split, 16, folder=folder) for split in ("all", "train", "test"))
    assert sorted(train.keys + test.keys) == sorted(whole.keys)
    assert train.classes == test.classes == whole.classes
    with pytest.raises(ValueError, match="read-only"):
        whole.images_NHWC[0] = 0  # shared between callers


@installed
def test_every_skin_tone_is_in_the_family_of_its_base():
    """By name, which `family` does not read: "waving hand: dark skin tone" is a variant of "waving hand"."""
    entries = {entry.name: entry.text for entry in module._read_names(NAMES)}
    toned = [name for name in entries if re.search(": [a-z-]+ skin tone$", name)]
    assert len(toned) > 1000
    for name in toned:
        assert family(entries[name]) == family(entries[name.rpartition(": ")[0]]), name
    sizes = Counter(family(text) for text in entries.values())
    assert len(sizes) > 1400
    assert max(sizes.values()) < 0.1 * len(entries)


@installed
def test_no_picture_has_a_double_on_the_other_side(tmp_path):
    os.symlink(FONT, tmp_path / FONT.name)
    untoned = [line for line in NAMES.read_text(encoding="utf-8").splitlines() if "skin tone" not in line]
    (tmp_path / NAMES.name).write_text("\n".join(untoned), encoding="utf-8")
    data, train, test = (emoji(split, 16, folder=tmp_path) for split in ("all", "train", "test"))
    assert sorted(train.keys + test.keys) == sorted(data.keys)
    assert not set(train.families_N) & set(test.families_N)
    assert 0.1 < len(test) / len(data) < 0.2
    for group in range(len(data.classes)):
        assert 0.03 < (test.labels_N == group).sum() / (data.labels_N == group).sum() < 0.3
    # Pictures of different families differ; within families there are doubles, or this would show nothing.
    x_NP = data.images_NHWC.reshape(len(data), -1).astype(np.float32) / 255
    square_N = (x_NP**2).sum(1)
    distance_NN = np.sqrt(np.maximum(square_N[:, None] + square_N - 2 * x_NP @ x_NP.T, 0) / x_NP.shape[1])
    other_NN = data.families_N[:, None] != data.families_N
    assert distance_NN[other_NN].min() > 0.03
    assert distance_NN[~other_NN & ~np.eye(len(data), dtype=bool)].min() < 0.02
    for train_N, test_N in data.folds(5):
        assert not set(data.families_N[train_N]) & set(data.families_N[test_N])


@pytest.mark.parametrize(
    "alike",
    [
        ("👋", "👋🏻", "👋🏿"),
        ("🧑‍🚀", "👨‍🚀", "👩🏾‍🚀"),
        ("👮", "👮‍♂️", "👮🏽‍♀️"),
        ("🧑", "👨", "👩🏿", "👨‍🦰", "👩🏼‍🦲", "🧔", "👱‍♀️"),
        ("👫", "👭", "🧑‍🤝‍🧑", "👩🏻‍🤝‍👨🏿"),
        ("👪", "👨‍👩‍👦", "👩‍👩‍👧‍👦", "👨‍👧"),
        ("💏", "👩‍❤️‍💋‍👨", "🧑🏻‍❤️‍💋‍🧑🏿"),
        ("🕐", "🕧"),
        ("❤️", "🖤"),
        ("1️⃣", "*️⃣"),
        ("🇳🇴", "🇧🇻"),
    ],
)
def test_variants_are_one_family(alike):
    assert len({family(text) for text in alike}) == 1


def test_other_pictures_are_other_families():
    different = ["👋", "🧑‍🚀", "🧑", "👮", "👫", "👪", "💏", "💑", "🕐", "❤️", "❤️‍🔥", "1️⃣", "🇳🇴", "🇸🇪", "🧒", "🧓", "🌕"]
    assert len({family(text) for text in different}) == len(different)


def test_missing_files_name_the_packages(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"install.*folder"):
        emoji(folder=tmp_path)
    monkeypatch.setattr(module, "_NAMES", tmp_path / "emoji-test.txt")
    with pytest.raises(ModuleNotFoundError, match=r"emoji-test\.txt: no such file"):
        emoji()


def test_files_that_are_something_else_are_named(folder):
    (folder / NAMES.name).write_text("nothing here", encoding="utf-8")
    with pytest.raises(ValueError, match=r"emoji-test\.txt: lists no fully-qualified emoji"):
        emoji(size=17, folder=folder)
    (folder / NAMES.name).write_text(LISTING, encoding="utf-8")
    (folder / FONT.name).unlink()
    (folder / FONT.name).write_bytes(b"no font")
    with pytest.raises(ValueError, match=r"NotoColorEmoji\.ttf: no bitmaps of size 109"):
        emoji(size=18, folder=folder)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(module.features, "check", lambda name: False)
    with pytest.raises(ValueError, match="apt-get install libraqm0 libfribidi0"):
        emoji(size=19, folder=folder)
    monkey.undo()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("validation",), "split='validation': expected one of train, test, all"), (("all", 4), "size=4")],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        emoji(*arguments)
