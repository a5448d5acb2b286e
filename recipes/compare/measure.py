"""Measure tokenizers on the same images, each in a process of its own, so that speed and memory are its own too."""

from __future__ import annotations

import datetime
import multiprocessing
import platform
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch

from recipes.compare.comparison import Comparison, Measured, Settings
from recipes.compare.entries import Entry, common_size, entry_of, open_model, text_of, unique_names
from recipes.compare.sampling import evenly_spaced, strided
from recipes.inputs import LeftOut, TokenizerSource, image_set
from recipes.programs import Extras, evaluate_images, preparation
from tokenizers_mm.api import Tokenizer
from tokenizers_mm.data import (
    find_images,
    pad_to_multiple,
    read_annotations,
    to_tensor,
    to_uint8,
    unpad,
)
from tokenizers_mm.measure import Codec, codec_curve, in_one_file, preset
from tokenizers_mm.report import Pixels
from tokenizers_mm.runtime import choose_device
from tokenizers_mm.traits import downsampling_of

__all__ = ["CODECS", "compare_tokenizers", "in_fresh_process"]

CODECS: tuple[Codec, ...] = ("jpeg", "webp")
MAX_TOKENIZERS = 10
_CODEC_PIXELS = 2**20
R = TypeVar("R")


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
    """The images, or as many of them, evenly spaced, as codecs write in reasonable time."""
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
        notes = read_annotations(settings.images, find_images(settings.images))
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
