"""Measure a saved tokenizer: reconstruction and information, and what else is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.inputs import ImageSet, LeftOut, TokenizerSource, image_set, open_tokenizer, probe_data
from recipes.joint.effective_bits import effective_bits
from tokenizers_mm.api import Tokenizer
from tokenizers_mm.data import ALLOWED_SHARE, Pixels, Preprocess, to_tensor
from tokenizers_mm.losses import Perceptual
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.measure import (
    SSIM_WINDOW,
    Evaluation,
    Measurement,
    Preset,
    evaluate,
    extractor,
    preset,
    probe_figures,
    teacher_figures,
    zero_shot_figures,
)
from tokenizers_mm.runtime import choose_device
from tokenizers_mm.towers import TowerConfig, build_tower
from tokenizers_mm.traits import downsampling_of, on_device, only_side

__all__ = ["Extras", "evaluate_images", "preparation"]


_TEACHER_IMAGES, _BITS_IMAGES = 512, 4000
_BATCH_PIXELS = 2**18


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What to measure beside reconstruction and information.

    frechet          extractor of a Frechet distance (see `measure.extractors`); inception is the preset's own
    frechet_size     side that the extractor sees; frechet_weights  file with its weights
    train            other real images, for the distance's floor and for the model behind effective bits; default: the
                     training part of a named set
    probe            labelled images for linear probe and nearest neighbours; probe_limit  so many of each part
    zero_shot        labelled images that a text tower tells by the names of their classes
    teacher          tower that the features are compared with
    effective_bits   train a small autoregressive model on the tokens
    speed            images per second and peak memory
    domains          name -> image folder: sets that are measured apart
    """

    frechet: str | None = None
    frechet_size: int | None = None
    frechet_weights: Path | None = None
    train: str | None = None
    probe: str | None = None
    probe_limit: int | None = None
    zero_shot: str | None = None
    teacher: str | None = None
    effective_bits: bool = False
    speed: bool = False
    domains: dict[str, str] = field(default_factory=dict)


def evaluate_images(
    tokenizer: TokenizerSource,
    images: str | Path,
    *,
    size: int | None = None,
    perceptual_name: str = "none",
    perceptual_weights: Path | str | None = None,
    limit: int | None = None,
    preset_name: str = "default",
    extras: Extras | None = None,
    max_unreadable: float = ALLOWED_SHARE,
    warn: Callable[[str], None] = warnings.warn,
    device: str | torch.device = "auto",
) -> Evaluation:
    """Measure a tokenizer on images: reconstruction, information, and what `extras` ask for.

    tokenizer  a run folder, anything that `load` takes, `module:attribute`, or an object (moved to the device, and out
               of training mode)
    images  an image folder; "photos", the two held-out photographs; "emoji" or "fashion-mnist", their held-out parts
    size    resize the shorter side to this and crop the centre; None: native size, padded to whole positions
    perceptual_name  lpips-vgg, lpips-alex, lite0, timm:MODEL, or none
    perceptual_weights  file with its weights, where they are not in their usual place
    limit   use only the first so many images
    preset_name  whose conventions to follow: default, adm, torch-fidelity, seed, bsq-vit
    extras  more to measure; the domains are measured like `images` and stand in `Evaluation.domains`
    max_unreadable  share of the images of any folder that may be unreadable; they are left out, and the result says
                    so: `Evaluation.left_out`
    warn    is told of the first of those, and how many they are
    device  auto (CUDA where there is one), cpu, cuda or cuda:N

    `Evaluation["PSNR"].value` is a figure, `.to_json()` all of them with their protocols. Raises `ValueError` for
    images that are not there or that the tokenizer cannot take, for names that mean nothing, and what
    `open_tokenizer` raises; `TooManyUnreadable` above that share.
    """
    left_out = LeftOut(max_unreadable, warn)
    extras, how, device = extras or Extras(), preset(preset_name), choose_device(device)
    model = on_device(open_tokenizer(tokenizer), device)
    evaluator = _Evaluator(model, how, size or only_side(model), limit, device, left_out)
    chosen = image_set(str(images))
    network = _perceptual(perceptual_name, perceptual_weights, device)
    frechet = None if extras.frechet is None else _extractor(extras, how).to(device)
    others = chosen.others() if extras.train is None else image_set(extras.train, "train")

    def measured(images: ImageSet, others: ImageSet | None, purpose: str) -> Evaluation:
        more = evaluator.batches(others, "train") if frechet is not None and others is not None else ()
        return evaluate(
            model,
            evaluator.batches(images, purpose),
            protocol=how.protocol(images.title, evaluator.size),
            perceptual=network,
            extractor=frechet,
            others=more,
            pad=True,
            speed=extras.speed,
            device=device,
        )

    result = measured(chosen, others, "images").plus(evaluator.extra_figures(chosen, others, extras))
    result = replace(result, left_out=left_out.errors())
    domains = {}
    for name, folder in extras.domains.items():
        domain = measured(image_set(folder), None, f"domain {name}")
        errors = left_out.errors().get(f"domain {name}")
        domains[name] = replace(domain, left_out={"images": errors} if errors else {})
    left_out.end()
    return replace(result, domains=domains)


class _Evaluator:
    """One tokenizer and how it gets its images."""

    def __init__(
        self,
        model: Tokenizer,
        how: Preset,
        size: int | None,
        limit: int | None,
        device: torch.device,
        left_out: LeftOut,
    ) -> None:
        self.model, self.how, self.size, self.limit, self.device = model, how, size, limit, device
        self.prepare, self.left_out = preparation(how, size), left_out
        if size is not None:
            Preprocess(size, downsampling_of(model))  # refuses sizes the tokenizer cannot take

    def batches(self, images: ImageSet, purpose: str, limit: int | None = None) -> Iterator[Tensor]:
        """Batches of neighbours of one size; native sizes differ."""
        waiting: list[Tensor] = []
        counter = self.left_out.counter(purpose)
        for pixels in images.pixels(self.side, limit or self.limit, prepare=self.prepare, counter=counter):
            image_CHW = to_tensor(pixels)
            if waiting and (image_CHW.shape != waiting[0].shape or len(waiting) == _batch_size(waiting[0])):
                yield torch.stack(waiting)
                waiting = []
            waiting.append(image_CHW)
        if waiting:
            yield torch.stack(waiting)

    @property
    def side(self) -> int:
        """Of images that are made for a size, and of those of probes."""
        return self.size or self.model.spec.image_size[0]

    def extra_figures(self, images: ImageSet, others: ImageSet | None, extras: Extras) -> Iterator[Measurement]:
        """Figures beside those of `evaluate`."""
        protocol, device = self.how.protocol(images.title, self.size), self.device
        if extras.effective_bits:
            if others is None:
                raise ValueError(f"effective bits: {images.title} has no training part; give one with --train")
            parts = {"train": others, "images": images}
            train, test = (self.batches(part, name, self.limit or _BITS_IMAGES) for name, part in parts.items())
            yield from effective_bits(self.model, train, test, device=device).measurements(protocol)
        if extras.teacher is not None:
            teacher = build_tower(TowerConfig(name=extras.teacher)).to(device)
            few = list(self.batches(images, "images", self.limit or _TEACHER_IMAGES))
            yield from teacher_figures(self.model, teacher, few, protocol, device)
        if extras.probe is not None:
            data = probe_data(extras.probe, self.side, extras.probe_limit, self.left_out.counter("probe"))
            yield from probe_figures(self.model, data, self._as_labelled(data.name), device)
        if extras.zero_shot is not None:
            data = probe_data(extras.zero_shot, self.side, extras.probe_limit, self.left_out.counter("zero-shot"))
            yield from zero_shot_figures(self.model, data, self._as_labelled(data.name), device=device)

    def _as_labelled(self, name: str) -> Any:
        """Labelled images are prepared by the default's rules whatever the preset."""
        return preset("default").protocol(name, self.side)


def preparation(how: Preset, size: int | None) -> Callable[[Pixels], Pixels]:
    """What is done to a decoded image (uint8 [H, W, 3]) before it is measured; `ValueError` on one too small for it."""

    def prepare(pixels: Pixels) -> Pixels:
        if size is not None:
            return how(pixels, size)
        least = SSIM_WINDOW[how.ssim]
        if min(pixels.shape[:2]) < least:
            raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels: SSIM needs {least} a side; set a size")
        return pixels

    return prepare


def _batch_size(image_CHW: Tensor) -> int:
    """Images at once: many small ones, few large ones."""
    return max(1, min(64, _BATCH_PIXELS // (image_CHW.shape[1] * image_CHW.shape[2])))


def _perceptual(name: str, weights: Path | str | None, device: torch.device) -> Perceptual | None:
    if name != "none":
        return perceptual(name, weights=weights).to(device)
    if weights is not None:
        raise ValueError(f"perceptual_weights={weights}: perceptual is none, so that no network needs them; name one")
    return None


def _extractor(extras: Extras, how: Preset) -> Any:
    assert extras.frechet is not None
    name = how.inception if extras.frechet == "inception" else extras.frechet
    return extractor(name, weights=extras.frechet_weights, input_size=extras.frechet_size)
