"""Entries of a comparison: what each tokenizer is, told before anything is measured, and which images it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.inputs import TokenizerSource, image_set, open_tokenizer
from tokenizers_mm import Autoencoder, Fused, Tokenizer, TokenSpec, Tower
from tokenizers_mm.data import Preprocess
from tokenizers_mm.saving import fingerprint_of, is_saved
from tokenizers_mm.towers import EncodeOnly
from tokenizers_mm.traits import downsampling_of, for_images, on_device, only_side, takes_one_size

__all__ = ["Entry", "common_size", "entry_of", "open_model", "text_of", "unique_names"]

_DRAWN = ("emoji", "fashion-mnist")  # made for a size, so they have none of their own
_INNER = ("tokenizer", "")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tokenizer of a comparison.

    source        what `open_tokenizer` takes, of an object its class
    name          how it is called on the page
    what          its parts, in words
    spec          of its own image size
    weights       numbers in its state, encoder and decoder together; of a plain class those in its attributes
    only          side of the square images that it takes, where it takes no others; None where it resizes
    downsampling  sides of its images are multiples of it
    encode_only   has no decoder
    fingerprint   of options and weights
    licence       of the weights, where they are public ones
    """

    source: str
    name: str
    what: str
    spec: TokenSpec
    weights: int
    only: int | None
    downsampling: int
    encode_only: bool
    fingerprint: str
    licence: str

    @property
    def tokens(self) -> str:
        """What one image becomes, in words: grid and what stands at a position."""
        grid: tuple[Any, ...] = self.spec.grid
        scales = grid if isinstance(grid[0], tuple) else (grid,)
        places = ", ".join(" × ".join(str(side) for side in scale) for scale in scales)
        if not self.spec.discrete:
            return f"{places}, {self.spec.dim} channels"
        sizes = self.spec.codes
        codes = f"{sizes[0]:,}" if len(set(sizes)) == 1 else ", ".join(f"{size:,}" for size in sizes)
        return f"{places}, {f'{len(sizes)} codes' if len(sizes) > 1 else '1 code'} of {codes}"

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def text_of(source: TokenizerSource) -> str:
    """The source as it is written on a command line; of an object the name of its class."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def open_model(source: TokenizerSource, size: int | None, device: str | torch.device = "cpu") -> Tokenizer:
    """Open it, in eval mode; a tower, which resizes whatever it is given, as a view of it for images of this size."""
    model = on_device(open_tokenizer(source), device)
    return model if size is None else for_images(model, (size, size))


def entry_of(source: TokenizerSource, name: str) -> Entry:
    """Open it and say what it is; raises what that raises, and `ValueError` where its images are not square."""
    model = open_model(source, None)
    resizes, only = hasattr(model, "for_images"), only_side(model)
    if takes_one_size(model) and only is None and not resizes:
        raise ValueError(
            f"{text_of(source)}: takes images of {model.spec.image_size} only; a comparison is on square ones"
        )
    provenance = getattr(model, "provenance", None)
    return Entry(
        source=text_of(source),
        name=name,
        what=_what(model),
        spec=model.spec,
        weights=_numbers(model),
        only=None if resizes else only,
        downsampling=downsampling_of(model),
        encode_only=_only_encodes(model),
        fingerprint=fingerprint_of(model),
        licence="" if provenance is None else provenance.licence_weights,
    )


def unique_names(sources: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """A name for each: the given ones, or the last parts of the paths, as many as tell all apart.

    Raises `ValueError` for a source or a name that comes twice, and where names do not pair with sources.
    """
    if names and len(names) != len(sources):
        raise ValueError(f"{len(names)} names for {len(sources)} tokenizers: give one for each, in their order")
    chosen, what = (list(names), "name") if names else (list(sources), "tokenizer")
    twice = [name for number, name in enumerate(chosen) if name in chosen[:number] or not name.strip()]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} is given twice, or empty: every one needs its own")
    if names:
        return chosen
    paths = [_parts(source) for source in sources]
    for count in range(1, max(map(len, paths)) + 1):
        short = ["/".join(parts[-count:]) for parts in paths]
        if len(set(short)) == len(short):
            return short
    return chosen


def common_size(entries: Sequence[Entry], images: str, size: int | None) -> int | None:
    """Side of the images that all are given, or None: images as they are, padded to whole positions.

    That of the tokenizers that take no other; else, of images that are drawn to a size, the one that all were built
    for. Towers follow the rest, for they resize by themselves. Raises `ValueError` naming who disagrees.
    """
    decoders = [entry for entry in entries if not entry.encode_only]
    if size is None:
        wanted = {entry.name: entry.only for entry in decoders if entry.only is not None}
        if not wanted and image_set(images).images in _DRAWN:
            wanted = {entry.name: entry.spec.image_size[0] for entry in decoders}
        if len(set(wanted.values())) > 1:
            sides = ", ".join(f"{name} {side}" for name, side in wanted.items())
            raise ValueError(f"image sizes differ ({sides}): choose one with --size that all take, or leave some out")
        size = next(iter(wanted.values()), None)
    for entry in decoders:
        _check_size(entry, size)
    return size


def _check_size(entry: Entry, size: int | None) -> None:
    if entry.only not in (None, size):
        raise ValueError(f"{entry.name} takes images of {entry.only} pixels a side only, not {size}")
    try:
        Preprocess(size, entry.downsampling)
    except ValueError as error:
        raise ValueError(f"{entry.name}: {error}") from error


def _parts(source: str) -> list[str]:
    parts = list(Path(source).parts) if "/" in source and ":" not in source else [source]
    return parts[:-1] if len(parts) > 1 and parts[-1] in _INNER else parts


def _numbers(model: Any) -> int:
    """Numbers in its state dictionary; without one, in the tensors and networks that are its attributes."""
    if isinstance(model, Tensor):
        return model.numel()
    if hasattr(model, "state_dict"):
        return sum(math.prod(tensor.shape) for tensor in model.state_dict().values())
    parts = [
        part
        for part in getattr(model, "__dict__", {}).values()
        if hasattr(part, "state_dict") or isinstance(part, Tensor)
    ]
    return sum(map(_numbers, parts))


@torch.no_grad()
def _only_encodes(model: Tokenizer) -> bool:
    """Whether there is no decoder; what a class of somebody else's does is tried on a black image."""
    if is_saved(model):
        return not model.card().decodes
    try:
        model.decode(model.encode(-torch.ones(1, 3, *model.spec.image_size)))
    except EncodeOnly:
        return True
    return False


def _what(model: Tokenizer) -> str:
    """Parts in words."""
    if isinstance(model, Fused):
        halves: tuple[Any, Any] = (model.semantic, model.perceptual)
        return f"fused {model.how}-wise: {' + '.join(_what(half) for half in halves)}"
    if isinstance(model, Tower):
        return f"tower {model.name}"
    if not isinstance(model, Autoencoder):
        return type(model).__name__
    config = model.config
    nets = config.net.kind if config.decoder_net is None else f"{config.net.kind} to {config.decoder_net.kind}"
    head = "" if config.semantic is None else ", semantic head"
    return f"{config.bottleneck['kind']}, {nets} net{head}"
