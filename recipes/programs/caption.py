"""Pictures to captions: a tokenizer turns pixels into tokens, a generator reads them.

Shape letters: H and W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from backbones import Autoregressive
from recipes.inputs import TokenizerSource
from recipes.programs.sample import GeneratorSource, open_pair
from tokenizers_mm.api import Tokenizer
from tokenizers_mm.data import (
    ImageError,
    Pixels,
    Unreadable,
    centre_crop,
    find_images,
    read_image,
    resize_shorter,
    to_tensor,
)
from tokenizers_mm.runtime import write_text

__all__ = ["Captioned", "caption_images", "write_captions"]


@dataclass(frozen=True)
class Captioned:
    """An image file and its caption; `key` is the path as it was given, or the one in the folder that was given."""

    path: Path
    key: str
    caption: str

    @property
    def line(self) -> str:
        """Path and caption on one line, a tab between them; what is no printable character became U+FFFD."""
        words = " ".join(self.caption.split())
        return f"{self.path}\t{''.join(sign if sign.isprintable() else chr(0xFFFD) for sign in words)}"


def caption_images(
    generator: GeneratorSource,
    tokenizer: TokenizerSource,
    images: Sequence[str | Path] | str | Path,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    device: str | torch.device = "auto",
    skipped: Callable[[ImageError], None] = lambda _: None,
    written: Callable[[Captioned], None] = lambda _: None,
) -> list[Captioned]:
    """Let a generator describe images: the most likely caption of each, one byte after the other.

    generator   a run folder, a generator folder, or a generator: an autoregressive one that was trained with captions
    tokenizer   anything `open_tokenizer` takes: the one whose tokens the generator learned
    images      files, or folders of jpg, png and webp, or one of them; resized to cover the generator's image size, and
                the centre cropped
    max_length  most bytes of a caption; default: as many as the generator learned
    device      auto, cpu, cuda or cuda:N: where both compute
    skipped     called with the error of every image that cannot be read; written  with every caption, once it is there

    Raises `ValueError` for a generator that writes no captions or is not of this tokenizer, and where no image at all
    could be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    items = list(_items([images] if isinstance(images, str | Path) else images))
    model, codec = open_pair(generator, tokenizer, device)
    if not (isinstance(model, Autoregressive) and model.config.writes_captions):
        name = generator if isinstance(generator, str | Path) else "the generator"
        raise ValueError(
            f"{name} writes no captions: {_why(model)}; use an autoregressive one with text_weight above 0"
        )
    unreadable = Unreadable("images", len(items), 1.0, report=skipped)
    done: list[Captioned] = []
    for group in _batches(items, model.spec.image_size, batch_size, unreadable):
        for (path, key, _), caption in zip(group, _captions(model, codec, group, max_length), strict=True):
            done.append(Captioned(path, key, caption))
            written(done[-1])
    if not done:
        first = next(iter(unreadable.errors.values()))
        raise ValueError(f"none of {len(items)} images could be read; the first: {first}")
    return done


def write_captions(captions: Sequence[Captioned], path: Path) -> None:
    """Write lines {"file": key, "caption": text}: what captions.jsonl beside the images of one folder has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"file": one.key, "caption": one.caption}, ensure_ascii=False) for one in captions]
    write_text(path, "".join(f"{line}\n" for line in lines))


_Item = tuple[Path, str]
_Loaded = tuple[Path, str, Pixels]


def _items(images: Sequence[str | Path]) -> Iterator[_Item]:
    """Every file once, with its key; `ValueError` for none at all, and for folders without images."""
    if not images:
        raise ValueError("images: expected at least one file or folder")
    seen: set[Path] = set()
    for path in map(Path, images):
        found = [(file, file.relative_to(path).as_posix()) for file in find_images(path)] if path.is_dir() else None
        for file, key in found or [(path, str(path))]:
            if file not in seen:
                yield file, key
            seen.add(file)


def _batches(
    items: Sequence[_Item], size: tuple[int, int], batch_size: int, unreadable: Unreadable
) -> Iterator[list[_Loaded]]:
    """Images of `size`, in groups of `batch_size`; those that cannot be read are counted."""
    group: list[_Loaded] = []
    for path, key in items:
        try:
            group.append((path, key, _covering(path, size)))
        except ImageError as error:
            unreadable.add(str(path), error)
        if len(group) == batch_size:
            yield group
            group = []
    if group:
        yield group


def _covering(path: Path, size: tuple[int, int]) -> Pixels:
    """The image [H, W, 3] of `size`: resized to cover it, both sides by one factor, then the centre."""

    def cover(pixels: Pixels) -> Pixels:
        short = min(pixels.shape[:2])
        wanted = max(-(-want * short // have) for want, have in zip(size, pixels.shape, strict=False))
        return centre_crop(resize_shorter(pixels, wanted), *size)

    return read_image(path, cover)


def _captions(model: Autoregressive, codec: Tokenizer, group: Sequence[_Loaded], max_length: int | None) -> list[str]:
    device = next(model.parameters()).device
    image_BCHW = torch.stack([to_tensor(pixels) for _, _, pixels in group]).to(device)
    with torch.no_grad():
        return model.caption(codec.encode(image_BCHW).to(device), max_length)


def _why(model: object) -> str:
    if not isinstance(model, Autoregressive):
        return "it draws images only"
    return "it was trained on classes" if model.config.classes else "it was trained with text_weight=0"
