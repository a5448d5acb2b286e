"""Colour emoji with English names: some 3 600 captioned, grouped pictures from two Debian packages, no download.

Pictures come from the 136 x 128 bitmaps of Noto Color Emoji (OFL 1.1), names and groups from Unicode's
emoji-test.txt (https://www.unicode.org/Public/emoji/). An emoji that is drawn exactly as an earlier one (Norway's flag
for Bouvet Island) is left out.

Most emoji come in variants: five skin tones, woman and man beside person, hair, clocks by the half hour, hearts in all
colours. Variants of one picture are a **family**, and a family is never split between training and test, or between
folds: else a test would measure memory. Sides are told by a hash of the family, so they do not change as Unicode grows.

Shape letters: N images, H and W pixels.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from tokenizers_mm.data import Labelled, MissingDataError

__all__ = ["EmojiSplit", "emoji", "family"]

EmojiSplit = Literal["train", "test", "all"]

_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
_STRIKE = 109  # the only size of the font's bitmaps
_SIDE = 136  # their width; eight rows of background are added to their height
_TEST_SHARE = 0.15

_LINE = re.compile(r"(?P<codes>[0-9A-F ]+?) *; fully-qualified *# \S+ E[\d.]+ (?P<name>.+)")
_TONE = "[\U0001f3fb-\U0001f3ff]"
_ADULTS, _CHILDREN, _OLDER = "[👨👩🧔]", "[👦👧]", "[👴👵]"
# Gender and hair are joined as separate signs; a variation selector only asks for colour.
_DRESS = re.compile(rf"\ufe0f|{_TONE}|\u200d[♀♂🦰🦱🦲🦳]")
# Pictures that differ in colour, size, number or a detail only.
_ALIKE = (
    *("🤴 👸 🫅", "🎅 🤶 🧑‍🎄", "💃 🕺", "🤰 🫃 🫄", "👫 👬 👭", "🧑 👱", "🤝 🫱‍🫲"),
    *("😀 😃 😄", "😈 👿", "😗 😙 😚", "😦 😧", "😐 😑", "🙁 ☹ 😕", "🙂 ☺"),
    *("🔒 🔓", "🔈 🔉 🔊 🔇", "🥇 🥈 🥉 🏅", "❔ ❕", "❓ ❗", "✡ 🔯", "📕 📗 📘 📙", "🌍 🌎 🌏", "☃ ⛄", "🚹 🚺 🚻"),
    "❤ 🧡 💛 💚 💙 💜 🤎 🖤 🤍 🩷 🩵 🩶",
    "🔴 🟠 🟡 🟢 🔵 🟣 🟤 ⚫ ⚪",
    "🟥 🟧 🟨 🟩 🟦 🟪 🟫 ⬛ ⬜ ◼ ◻ ◾ ◽ ▪ ▫",
    "🔶 🔷 🔸 🔹",
    "🌑 🌒 🌓 🌔 🌕 🌖 🌗 🌘",
    " ".join(chr(code) for code in range(0x1F550, 0x1F568)),  # clock faces
)
_SAME_FLAGS = ("NO BV SJ", "FR CP MF", "US UM", "AU HM", "IO DG", "ES EA", "RO TD", "HN NI SV", "EG YE IQ SY", "PS EH")


def emoji(split: EmojiSplit = "all", size: int = 32, *, folder: str | Path | None = None) -> Labelled:
    """Emoji on white, [N, size, size, 3] with their names as captions and their nine groups as classes.

    split   train (85 % of the families), test, or all
    size    side in pixels; the bitmaps are reduced (bicubic, antialiased) or enlarged
    folder  holds NotoColorEmoji.ttf and emoji-test.txt; default: where Debian's packages put them

    Drawing takes about six seconds on one core; splits share it, so a process pays once for each size.
    Raises `MissingDataError` naming the packages; `ValueError` on a split, size or file that cannot be used.
    """
    if split not in get_args(EmojiSplit):
        raise ValueError(f"split={split!r}: expected one of {', '.join(get_args(EmojiSplit))}")
    if size < 8:
        raise ValueError(f"size={size}: emoji cannot be told apart below 8 pixels")
    font, names = _files(folder)
    everything = _draw_all(font, names, size)
    if split == "all":
        return everything
    held_out = np.array([_held_out(key) for key in everything.keys])
    return everything.subset(held_out if split == "test" else ~held_out)


def family(text: str) -> str:
    """What an emoji shares with its near-duplicates; the same text for all of them.

    Skin tone, gender and hair are taken off, people of one age become one, and the sets in this file are one each.
    """
    flag = re.fullmatch("[\U0001f1e6-\U0001f1ff]{2}", text)
    if flag:
        country = "".join(chr(ord(letter) - 0x1F1E6 + ord("A")) for letter in text)
        return next((alike for alike in _SAME_FLAGS if country in alike.split()), text)
    base = _DRESS.sub("", text)
    if "\u20e3" in base:
        return "keycap"
    for pattern, neutral in ((_ADULTS, "🧑"), (_CHILDREN, "🧒"), (_OLDER, "🧓")):
        base = re.sub(pattern, neutral, base)
    if re.search("[🧑🧒🧓].*[🧑🧒🧓]", base):  # two people or more
        base = "💏" if "💋" in base else "💑" if "❤" in base else "👪" if "🧒" in base else "👫"
    return next((alike for alike in _ALIKE if base in alike.split()), base)


@cache
def _held_out(key: str) -> bool:
    name = family("".join(chr(int(code, 16)) for code in key.split("-")))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < _TEST_SHARE * 2**64


@dataclass(frozen=True)
class _Entry:
    text: str
    name: str
    group: str

    @property
    def key(self) -> str:
        return "-".join(f"{ord(letter):x}" for letter in self.text)


def _files(folder: str | Path | None) -> tuple[Path, Path]:
    """Font and list of names."""
    font, names = (_FONT, _NAMES) if folder is None else (Path(folder) / _FONT.name, Path(folder) / _NAMES.name)
    missing = [str(path) for path in (font, names) if not path.is_file()]
    if missing:
        raise MissingDataError(
            f"{' and '.join(missing)}: no such file; apt-get install fonts-noto-color-emoji unicode-data, or give a "
            f"folder that holds {_FONT.name} and {_NAMES.name}"
        )
    return font, names


@lru_cache(maxsize=4)
def _draw_all(font: Path, names: Path, size: int) -> Labelled:
    entries = _read_names(names)
    chosen, images = [], []
    seen: set[bytes] = set()
    for entry, image in zip(entries, _draw(font, [entry.text for entry in entries]), strict=True):
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            chosen.append(entry)
            images.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)))
    classes = tuple(dict.fromkeys(entry.group for entry in entries))
    families: dict[str, int] = {}
    return Labelled(
        images_NHWC=_frozen(np.stack(images)),
        captions=tuple(entry.name for entry in chosen),
        labels_N=_frozen(np.array([classes.index(entry.group) for entry in chosen])),
        classes=classes,
        keys=tuple(entry.key for entry in chosen),
        families_N=_frozen(np.array([families.setdefault(family(entry.text), len(families)) for entry in chosen])),
    )


def _read_names(path: Path) -> list[_Entry]:
    """The fully qualified emoji of an emoji-test.txt, in its order."""
    entries, group = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif match := _LINE.fullmatch(line):
            text = "".join(chr(int(code, 16)) for code in match["codes"].split())
            entries.append(_Entry(text, match["name"], group))
    if not entries:
        raise ValueError(f"{path}: lists no fully-qualified emoji; it must be Unicode's emoji-test.txt")
    return entries


def _draw(path: Path, texts: list[str]) -> Iterator[Image.Image]:
    """Square pictures of the font's own resolution, one at a time."""
    if not features.check("raqm"):
        raise ValueError("Pillow cannot join emoji of several code points here: apt-get install libraqm0 libfribidi0")
    try:  # bytes, since for a path it cannot read Pillow takes a font of the same name from elsewhere
        font = ImageFont.truetype(io.BytesIO(path.read_bytes()), _STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise ValueError(
            f"{path}: no bitmaps of size {_STRIKE} ({error}); take Debian's fonts-noto-color-emoji"
        ) from error
    for text in texts:
        image = Image.new("RGB", (_SIDE, _SIDE), "white")
        ImageDraw.Draw(image).text((0, 4), text, font=font, embedded_color=True)
        yield image


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Shared between callers, so nobody may write to it."""
    array.setflags(write=False)
    return array
