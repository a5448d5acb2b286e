"""Measure tokenizers on the same images, each in a process of its own, so that speed and memory are its own too."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch

from recipes.compare.codecs import CodecPoint, codec_curve, in_one_file, spread, strided
from recipes.compare.entries import Entry, common_size, entry_of, open_model, text_of, unique_names
from recipes.inputs import LeftOut, TokenizerSource, image_set
from recipes.programs import Extras, evaluate_images, preparation
from tokenizers_mm.api import Tokenizer
from tokenizers_mm.data import (
    ALLOWED_SHARE,
    check_share,
    find_images,
    pad_to_multiple,
    read_notes,
    to_tensor,
    to_uint8,
    unpad,
)
from tokenizers_mm.measure import Codec, Evaluation, preset
from tokenizers_mm.report import Pixels
from tokenizers_mm.runtime import choose_device
from tokenizers_mm.traits import downsampling_of

__all__ = ["CODECS", "Comparison", "Measured", "Settings", "in_fresh_process", "compare_tokenizers"]

CODECS: tuple[Codec, ...] = ("jpeg", "webp")
MAX_TOKENIZERS = 10
_CODEC_PIXELS = 2**20
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, the same for all.

    images      an image folder, or photos, emoji, fashion-mnist: their held-out parts
    size        side of the images; None: that of `common_size`
    limit       use the first so many images
    max_unreadable  share of the images of any folder that may be unreadable
    preset      whose conventions to follow, see `measure.presets`
    perceptual  a perceptual distance, or none;  perceptual_weights  file with its weights, None: in their usual place
    frechet     extractor of a Frechet distance, or None
    probe       labelled images for linear probe and neighbours, "none", or "auto": those of `images`, where they have
                labels;  probe_limit  so many of each part
    speed       images per second and peak memory, each tokenizer in a process of its own
    pictures    so many images are shown
    device      auto, cpu, cuda or cuda:N: where all are measured
    """

    images: str
    size: int | None = None
    limit: int | None = None
    max_unreadable: float = ALLOWED_SHARE
    preset: str = "default"
    perceptual: str = "none"
    perceptual_weights: str | None = None
    frechet: str | None = None
    probe: str = "auto"
    probe_limit: int | None = 4000
    speed: bool = True
    pictures: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse counts below one, and what is no share."""
        for name in ("size", "limit", "probe_limit", "pictures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        check_share("max_unreadable", self.max_unreadable)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One tokenizer, its figures, and its pictures of the images that are shown (none where it has no decoder)."""

    entry: Entry
    evaluation: Evaluation
    pictures: tuple[Pixels, ...] = ()

    def value(self, name: str) -> float | None:
        """The figure of that name, or None."""
        return next((m.value for m in self.evaluation.measurements if m.name == name), None)

    @property
    def rate(self) -> float:
        """Bits per pixel that its tokens can carry."""
        return self.evaluation["Rate per pixel"].value

    @property
    def spent(self) -> float | None:
        """Bits per pixel that an ideal coder would need: entropy of the codes, or KL of the posterior."""
        return self.value("Marginal entropy per pixel") or self.value("KL per pixel")


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Everything that the page shows.

    title      of the images;  count  how many were measured
    originals  the images that are shown
    codecs     curves of ordinary codecs on `codec_images` of the images, evenly spread;  tiled  all in one file
    """

    settings: Settings
    title: str
    originals: tuple[Pixels, ...]
    tokenizers: tuple[Measured, ...]
    codecs: Mapping[str, Sequence[CodecPoint]]
    codec_images: int
    tiled: bool
    environment: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Images measured."""
        return self.tokenizers[0].evaluation.measurements[0].protocol.samples

    def to_json(self) -> str:
        """All figures with their protocols, without pictures."""
        record = {
            "images": self.title,
            "settings": asdict(self.settings),
            "tokenizers": [one.entry.record() | one.evaluation.record() for one in self.tokenizers],
            "codecs": {
                "images": self.codec_images,
                "one_file": self.tiled,
                **{name: [point.record() for point in curve] for name, curve in self.codecs.items()},
            },
            "environment": dict(self.environment),
        }
        return json.dumps(record, indent=1, allow_nan=False)


def compare_tokenizers(
    sources: Sequence[TokenizerSource],
    settings: Settings,
    *,
    names: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure all on the same images; whatever does not fit is refused before anything is measured.

    sources   each a run folder, anything that `load` takes, `module:attribute`, or an object (without `speed`)
    names     how the tokenizers are called, in their order; default: the last parts of their paths, or their classes
    progress  called with a line of text before every step

    `recipes.compare.page.write_comparison` makes a page of the result, `to_json` its record.

    Raises `ValueError` for no tokenizers or too many, images of sizes that not all can take, objects whose speed
    should be measured, and what `open_tokenizer`, `evaluate_images` and the images' files raise.
    """
    if not 1 <= len(sources) <= MAX_TOKENIZERS:
        raise ValueError(f"{len(sources)} tokenizers: a comparison takes 1 to {MAX_TOKENIZERS}")
    for source in sources:
        if settings.speed and not isinstance(source, str | Path):
            raise ValueError(
                f"{text_of(source)} is an object, and speed=True measures each tokenizer in a process of its own: name "
                "it as module:attribute, or set speed=False"
            )
    named = zip(sources, unique_names([text_of(source) for source in sources], names), strict=True)
    settings = replace(settings, device=str(choose_device(settings.device)))
    entries = [entry_of(source, name) for source, name in named]
    settings = replace(settings, size=common_size(entries, settings.images, settings.size), probe=_probe(settings))
    sample = _sample(settings, entries)
    originals = tuple(evenly_spaced(sample, settings.pictures))
    tokenizers = []
    for entry, source in zip(entries, sources, strict=True):
        progress(f"measuring {entry.name}: {entry.what}")
        arguments = (entry, source, settings, originals)
        tokenizers.append(in_fresh_process(_measured, *arguments) if settings.speed else _measured(*arguments))
    progress("writing JPEG and WebP at every quality")
    return Comparison(
        settings=settings,
        title=image_set(settings.images).title,
        originals=originals,
        tokenizers=tuple(tokenizers),
        codecs={codec: codec_curve(sample, codec) for codec in CODECS},
        codec_images=len(sample),
        tiled=in_one_file(sample),
        environment=_environment(),
    )


def in_fresh_process(function: Callable[..., R], *arguments: Any) -> R:
    """Call it in a fresh process, which is gone afterwards; what it raises is raised here."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _measured(entry: Entry, source: TokenizerSource, settings: Settings, originals: Sequence[Pixels]) -> Measured:
    extras = Extras(
        frechet=settings.frechet,
        probe=None if settings.probe == "none" else settings.probe,
        probe_limit=settings.probe_limit,
        speed=settings.speed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every tokenizer warned when it was introduced
        model = open_model(source, settings.size, settings.device)
    evaluation = evaluate_images(
        model,
        settings.images,
        size=settings.size,
        perceptual_name=settings.perceptual,
        perceptual_weights=settings.perceptual_weights,
        limit=settings.limit,
        preset_name=settings.preset,
        extras=extras,
        max_unreadable=settings.max_unreadable,
        warn=lambda _: None,  # they were named when the images were first read
        device=settings.device,
    )
    pictures = () if entry.encode_only else _reconstructed(model, originals, settings.device)
    return Measured(entry=entry, evaluation=evaluation, pictures=pictures)


@torch.no_grad()
def _reconstructed(model: Tokenizer, originals: Sequence[Pixels], device: str) -> tuple[Pixels, ...]:
    """Each on its own: their sizes may differ."""
    pictures = []
    for pixels in originals:
        image_BCHW = to_tensor(pixels)[None].to(device)
        padded_BCHW, size = pad_to_multiple(image_BCHW, downsampling_of(model))
        output_BCHW = unpad(model.decode(model.encode(padded_BCHW)), size)
        pictures.append(to_uint8(output_BCHW)[0].permute(1, 2, 0).cpu().numpy())
    return tuple(pictures)


def _sample(settings: Settings, entries: Sequence[Entry]) -> list[Pixels]:
    """The images, or as many of them, evenly evenly_spaced, as codecs write in reasonable time."""
    side = settings.size or entries[0].spec.image_size[0]
    left_out = LeftOut(settings.max_unreadable)  # names the images that none of the tokenizers will be given
    how, counter = preparation(preset(settings.preset), settings.size), left_out.counter("images")
    every = image_set(settings.images).pixels(side, settings.limit, prepare=how, counter=counter)
    first = next(every, None)
    if first is None:
        raise ValueError(f"{settings.images}: there is nothing to measure")
    sample = strided(chain([first], every), max(2, _CODEC_PIXELS // first[..., 0].size))
    left_out.end()
    return sample


def _probe(settings: Settings) -> str:
    """What "auto" means: a named set that has labels, a folder that has classes, or none."""
    base = settings.images.partition(":")[0]
    if settings.probe != "auto":
        return settings.probe
    if base == "photos":
        return "none"
    if base in ("emoji", "fashion-mnist"):
        return base
    try:
        notes = read_notes(settings.images, find_images(settings.images))
        return settings.images if len(notes.classes) > 1 else "none"
    except ValueError:
        return "none"  # no labels, or broken ones: naming the folder as the probe says what is wrong with them


def _environment() -> dict[str, Any]:
    packages = ("tokenizers-mm", "torch", "torchvision", "timm", "numpy", "pillow")
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }
