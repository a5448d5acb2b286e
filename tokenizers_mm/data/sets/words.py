"""Words as pictures: do characters survive a tokenizer? Several fonts, sizes and colours; the caption is the word.

Words are lower-case letters and digits: some English ones, more that are made of syllables or drawn letter by letter,
so that a reader has to read and cannot guess. Words, not pictures, are held out: none of the test split is ever in the
training split, whatever seed and count.

Shape letters: N images, H and W pixels, C colour channels.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokenizers_mm.data import Labelled, MissingDataError

__all__ = ["ALPHABET", "WordSplit", "find_fonts", "words"]

WordSplit = Literal["train", "test"]
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

# Families that read well when small: of the files that come with matplotlib, or else Debian's fonts-dejavu.
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10"),
)
_SYSTEM_FONTS = Path("/usr/share/fonts/truetype/dejavu")
_ENGLISH_WORDS = """
apple arrow bakery bank beach bird blue boat book box bread bridge brown bus cafe camera candle car castle cat chair
church city clock cloud coffee cold corner cup dance danger dark desk dog door dream east exit family farm fast field
fire first fish flower forest free friend fruit garden glass gold grass green guitar hand happy heart hello hill horse
hotel house ice island jacket july jump june key king kitchen lake lamp left lemon letter light lion market milk money
moon morning mouse museum music night north number ocean office open orange paper park pencil phone piano picture pizza
plane plant queen quick quiet radio rain red right river road rock rose sale salt school sea seven shop silver sky sleep
small snow south spring square star station stop street summer sun table taxi tea ticket tiger time today tower train
tree uncle van village violin voice wall warm water west white wild wind window winter wolf wood yellow young zebra zero
"""
_ENGLISH = _ENGLISH_WORDS.split()
_ONSETS, _VOWELS, _CODAS = (*"bcdfghjklmnprstvwxyz", "qu", "br", "ch", "pl", "st", "tr"), "aeiou", "nrstlmkdxz"
_SHORTEST, _LONGEST = 3, 8
_TEST_SHARE = 0.15
# Parts of the picture's height: size of the letters before they are made to fit; margins in pixels of a 32-pixel one.
_SMALLEST, _LARGEST, _MARGIN = 0.45, 0.8, 3 / 32
_LUMA = np.array([0.2126, 0.7152, 0.0722])
_LEAST_CONTRAST = 0.35


def words(
    split: WordSplit = "train",
    count: int = 8000,
    seed: int = 0,
    size: tuple[int, int] = (32, 96),
    *,
    fonts: str | Path | Sequence[Path] | None = None,
) -> Labelled:
    """Pictures of words, [N, *size, 3]; captions are the words, labels are unknown (-1), a family is one word.

    size   (height, width) in pixels; letters are 45 to 80 % as high as the picture, smaller where a word needs it
    fonts  a folder of ttf and otf files, or such files; default: see `find_fonts`

    The same arguments and font files give the same pictures.
    Raises `MissingDataError` where no font is found, `ValueError` on any other argument that cannot be used.
    """
    if split not in get_args(WordSplit):
        raise ValueError(f"split={split!r}: expected one of {', '.join(get_args(WordSplit))}")
    if count < 1 or seed < 0:
        raise ValueError(f"count={count}, seed={seed}: expected count >= 1 and seed >= 0")
    if size[0] < 16 or size[1] < 2 * size[0]:
        raise ValueError(f"size={size}: expected a height of 16 pixels or more and a width of twice that or more")
    files = find_fonts(fonts) if fonts is None or isinstance(fonts, str | Path) else list(fonts)
    if not files:
        raise ValueError("fonts=[]: expected at least one font file")
    rng = np.random.default_rng((seed, get_args(WordSplit).index(split)))
    texts = [_word(rng, split) for _ in range(count)]
    families: dict[str, int] = {}
    return Labelled(
        images_NHWC=np.stack([_draw(text, rng, files, size) for text in texts]),
        captions=tuple(texts),
        labels_N=np.full(count, -1),
        classes=(),
        keys=tuple(f"{split}-{seed}-{number:06d}" for number in range(count)),
        families_N=np.array([families.setdefault(text, len(families)) for text in texts]),
    )


def find_fonts(folder: str | Path | None = None) -> list[Path]:
    """Every ttf and otf file of a folder; by default 14 fonts of 6 families from matplotlib's wheel, or system DejaVu.

    Raises `MissingDataError` where there are none.
    """
    if folder is not None:
        found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
        if not found:
            raise MissingDataError(f"{folder}: holds no ttf or otf files")
        return found
    spec = find_spec("matplotlib")
    wheel = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" if spec and spec.origin else _SYSTEM_FONTS
    for place in (wheel, _SYSTEM_FONTS):
        if found := [place / f"{name}.ttf" for name in _FONTS if (place / f"{name}.ttf").is_file()]:
            return found
    raise MissingDataError(
        "no fonts to write words with: pip install matplotlib, or apt-get install fonts-dejavu, or give a folder of "
        "ttf files"
    )


def _word(rng: np.random.Generator, split: WordSplit) -> str:
    """A word of the split: drawn again until it is one."""
    while True:
        kind = rng.random()
        length = int(rng.integers(_SHORTEST, _LONGEST + 1))
        if kind < 0.2:
            word = _ENGLISH[int(rng.integers(len(_ENGLISH)))]
        elif kind < 0.6:
            word = "".join(_syllable(rng) for _ in range(_LONGEST))[:length]
        else:
            word = "".join(ALPHABET[int(i)] for i in rng.integers(len(ALPHABET), size=length))
        if (split == "test") == _held_out(word):
            return word


def _syllable(rng: np.random.Generator) -> str:
    onset: str = _ONSETS[int(rng.integers(len(_ONSETS)))]
    vowel = _VOWELS[int(rng.integers(len(_VOWELS)))]
    return onset + vowel + (_CODAS[int(rng.integers(len(_CODAS)))] if rng.random() < 0.4 else "")


def _held_out(word: str) -> bool:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") < _TEST_SHARE * 2**64


def _draw(text: str, rng: np.random.Generator, fonts: Sequence[Path], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size
    margin = max(1, round(_MARGIN * height))
    path, pixels = fonts[int(rng.integers(len(fonts)))], round(height * rng.uniform(_SMALLEST, _LARGEST))
    left, top, right, bottom = map(int, _font(path, pixels).getbbox(text))
    while right - left > width - 2 * margin or bottom - top > height - 2 * margin:
        pixels -= 1
        left, top, right, bottom = map(int, _font(path, pixels).getbbox(text))
    x = rng.integers(margin, width - margin - (right - left) + 1) - left
    y = rng.integers(margin, height - margin - (bottom - top) + 1) - top
    ground, ink = _colours(rng)
    image = Image.new("RGB", (width, height), ground)
    ImageDraw.Draw(image).text((int(x), int(y)), text, font=_font(path, pixels), fill=ink)
    return np.asarray(image)


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ground and ink that differ enough in brightness."""
    while True:
        pair = rng.integers(0, 256, (2, 3))
        if abs(pair[0] @ _LUMA - pair[1] @ _LUMA) >= _LEAST_CONTRAST * 255:
            return tuple(pair[0].tolist()), tuple(pair[1].tolist())


@lru_cache(maxsize=512)
def _font(path: Path, pixels: int) -> ImageFont.FreeTypeFont:
    try:  # bytes, since for a path it cannot read Pillow takes a font of the same name from elsewhere
        return ImageFont.truetype(io.BytesIO(path.read_bytes()), pixels, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise ValueError(f"{path}: not a font that can be read at {pixels} pixels ({error})") from error
