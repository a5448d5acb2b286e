"""Captions to pictures: a generator draws tokens, a tokenizer turns them into pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import backbones
from backbones import Autoregressive, Flow
from recipes.inputs import TokenizerSource, check_generator, generator_folder, open_tokenizer
from tokenizers_mm.api import Condition, Tokenizer
from tokenizers_mm.data import to_uint8
from tokenizers_mm.runtime import choose_device, local_path
from tokenizers_mm.saving import fingerprint_of
from tokenizers_mm.traits import on_device

__all__ = ["TOKENIZER_FILE", "GeneratorSource", "open_pair", "sample_images", "save_strip"]

# Beside a trained generator: the fingerprint of the tokenizer whose tokens it learned.
TOKENIZER_FILE = "tokenizer.sha256"
GeneratorSource = str | Path | Autoregressive | Flow


def sample_images(
    generator: GeneratorSource,
    tokenizer: TokenizerSource,
    conditions: Sequence[str],
    *,
    guidance: float = 2.0,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Tensor:
    """Draw one image per caption, or per class number where the generator was trained on classes.

    generator   a run folder, a generator folder, or a generator
    tokenizer   anything `open_tokenizer` takes: the one whose tokens the generator learned
    conditions  captions, or class numbers as texts ("3")
    guidance    scale of classifier-free guidance, 1 is none
    seed        of all that is drawn
    device      auto, cpu, cuda or cuda:N: where both compute

    Returns uint8 [B, C, H, W] on the CPU. Raises `ValueError` where the generator's tokens are not those of the
    tokenizer, for conditions that the generator does not know, and for a device that is not there.
    """
    model, codec = open_pair(generator, tokenizer, device)
    condition: Condition = conditions
    if model.config.classes:
        numbers = [_class_number(name) for name in conditions]
        condition = torch.tensor(numbers, device=next(model.parameters()).device)
    with torch.no_grad():
        image_BCHW = codec.decode(model.sample(condition, guidance=guidance, seed=seed))
    return to_uint8(image_BCHW).cpu()


def open_pair(
    generator: GeneratorSource, tokenizer: TokenizerSource, device: str | torch.device = "auto"
) -> tuple[Autoregressive | Flow, Tokenizer]:
    """A generator and the tokenizer that belongs to it, both on a device and in eval mode.

    Raises `ValueError` where the generator did not learn this tokenizer's tokens: another spec, or another fingerprint
    than the one that training left beside the generator.
    """
    place = choose_device(device)
    model, name = generator, "the generator"
    if isinstance(model, str | Path):
        check_generator(Path(model))
        name = str(generator_folder(Path(model)))
        model = backbones.load(name)
    codec = on_device(open_tokenizer(tokenizer), place)
    source = tokenizer if isinstance(tokenizer, str | Path) else "the tokenizer"
    remedy = "use the tokenizer that encoded the training data"
    if not _decodes(codec, model):
        raise ValueError(f"{name} draws tokens of {model.spec}, but {source} decodes {codec.spec}: {remedy}")
    record = Path(name) / TOKENIZER_FILE
    learned = record.read_text().strip() if record.exists() else None
    if learned is not None and learned != fingerprint_of(codec):
        if not hasattr(codec, "provenance"):  # a class of somebody else's, known by its state
            remedy += ", or give its class a `fingerprint` where its state changes and its tokens do not"
        raise ValueError(
            f"{name} learned the tokens of tokenizer {learned}, but {source} is tokenizer {fingerprint_of(codec)}: "
            f"{remedy}"
        )
    return model.to(place).eval(), codec


def save_strip(image_BCHW: Tensor, path: Path, height: int = 128) -> None:
    """Write uint8 images [B, C, H, W] side by side, enlarged without smoothing to at least `height` pixels."""
    strip = np.concatenate(list(image_BCHW.permute(0, 2, 3, 1).numpy()), axis=1)
    factor = max(1, height // strip.shape[0])
    local_path(path, "path").parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip.repeat(factor, 0).repeat(factor, 1)).save(path)


def _decodes(codec: Tokenizer, model: Autoregressive | Flow) -> bool:
    """Whether the tokens are of one spec, at the generator's image size."""
    try:
        return codec.spec.resized(model.spec.image_size).same_tokens(model.spec)
    except ValueError:
        return False


def _class_number(name: str) -> int:
    if not name.isdigit():
        raise ValueError(f"condition {name!r}: this generator was trained on classes, expected a class number")
    return int(name)
