"""Captioned shapes through the tokenizers: the judge, what reconstructions keep, the controls, the token stores.

Shape letters: B batch, N, T images, A attributes, F features, C, H, W image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.gates.figures import Figure, Findings, merge
from recipes.gates.photos import TOKENIZERS, save_picture
from tokenizers_mm.api import Tokens
from tokenizers_mm.data import to_uint8
from tokenizers_mm.data.sets import ATTRIBUTES, Shapes
from tokenizers_mm.measure import AttributeJudge, CodeStatistics, accuracy, psnr, train_judge
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.saving import fingerprint
from tokenizers_mm.store import CAPTIONS, TokenDataset

__all__ = [
    "CEILING_GATE",
    "CONTROLS",
    "Evaluator",
    "as_images",
    "chance_range",
    "control",
    "make_evaluator",
    "measure_stores",
    "measure_tokenizer",
    "save_stack",
    "scores",
]

JUDGE_GATE, CEILING_GATE = 0.99, 0.93
CONTROLS = {
    "shuffled": "Real images, captions of others",
    "random_fsq": "Decoded from random codes",
    "random_vae": "Decoded from random latents",
    "ar_shuffled": "Token by token, captions of others",
    "ar_null": "Token by token, no caption",
    "flow_shuffled": "Flow, captions of others",
    "flow_null": "Flow, no caption",
}
_JUDGE_IMAGES, _TEST_IMAGES, _CHUNK, _SHOWN = 8000, 2000, 250, 8
_CHANCE_SIGMAS = 4.0


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What everything that draws shapes is measured with.

    real      real images, at least 16 of every caption; the judge learned from them
    test      fresh images of all combinations
    train     the images that tokenizers and generators learned from
    train_TF  their features in the judge
    findings  the judge's own gate and the chance level of its readings
    """

    judge: AttributeJudge
    judge_words: str
    real: Shapes
    test: Shapes
    train: Shapes
    train_TF: Tensor
    findings: Findings


def make_evaluator(folder: Path, judge_steps: int, progress: Callable[[str], None]) -> Evaluator:
    """Train the judge on real images and hold it against its own gate."""
    progress("judge: learns to read shapes from real images")
    real, test = Shapes(_JUDGE_IMAGES, 101, "all"), Shapes(_TEST_IMAGES, 102, "all")
    classes = {name: len(values) for name, values in ATTRIBUTES.items()}
    judge = train_judge(real.images, real.attributes, classes, steps=judge_steps)
    train = Shapes(len((folder / "shapes" / CAPTIONS).read_text(encoding="utf-8").splitlines()), 0, "train")
    words = f"convolutional network, {judge_steps} steps on Shapes({_JUDGE_IMAGES}, seed=101, split='all')"
    image_BCHW = as_images(test)
    save_stack(folder, "shapes_original", image_BCHW[:_SHOWN])
    read_NA = judge.predict(image_BCHW)
    record = "Judge on real shapes"
    figures = {
        f"shapes/judge/{name}": Figure(
            value=value, unit="share", protocol=record, at_least=None if name == "joint" else JUDGE_GATE
        )
        for name, value in accuracy(read_NA, torch.from_numpy(test.attributes), ATTRIBUTES).items()
    }
    protocol = {"images": f"Shapes({_TEST_IMAGES}, seed=102, split='all')", "samples": _TEST_IMAGES, "judge": words}
    gate = Findings(figures=figures, protocols={record: protocol})
    return Evaluator(
        judge=judge,
        judge_words=words,
        real=real,
        test=test,
        train=train,
        train_TF=judge.features(as_images(train)),
        findings=merge([gate, control("shuffled", read_NA, test.attributes, protocol, shuffle=True)]),
    )


@torch.no_grad()
def measure_tokenizer(folder: Path, name: str, evaluator: Evaluator, progress: Callable[[str], None]) -> Findings:
    """Judge the reconstructions of run shapes_NAME: the ceiling of whatever is generated through it, and the floor."""
    progress(f"shapes_{name}: reconstructions, and decodes of random tokens")
    model = Autoencoder.from_pretrained(folder / f"shapes_{name}" / "tokenizer")
    record = f"Shapes reconstructed, {name.upper()}"
    image_BCHW = as_images(evaluator.test)
    parts = [model.encode(chunk) for chunk in torch.split(image_BCHW, _CHUNK)]
    decoded_BCHW = torch.cat([model.decode(part) for part in parts])
    save_stack(folder, f"shapes_{name}", decoded_BCHW[:_SHOWN])
    figures = {
        f"shapes/{name}/{attribute}": Figure(
            value=value, unit="share", protocol=record, at_least=CEILING_GATE if attribute == "joint" else None
        )
        for attribute, value in scores(evaluator.judge, decoded_BCHW, evaluator.test.attributes).items()
    }
    quality = float(psnr(decoded_BCHW, image_BCHW).mean())
    figures[f"shapes/{name}/psnr"] = Figure(value=quality, unit="dB", protocol=record)
    figures |= _code_figures(name, model, parts, record)
    protocol = {
        "tokenizer": fingerprint(model),
        "images": f"Shapes({_TEST_IMAGES}, seed=102, split='all')",
        "samples": _TEST_IMAGES,
        "posterior": "none" if model.spec.discrete else "mode",
        "rounding": "PSNR: rounded to uint8, mean over images; judge: clamped",
        "judge": evaluator.judge_words,
    }
    random = _random_tokens(model, len(parts[0]))
    read_NA = evaluator.judge.predict(model.decode(random))
    words = protocol | {"images": "decoded from random tokens", "samples": len(random)}
    floor = control(f"random_{name}", read_NA, evaluator.test.attributes[: len(random)], words)
    return merge([Findings(figures=figures, protocols={record: protocol}), floor])


def _code_figures(name: str, model: Autoencoder, parts: list[Tokens], record: str) -> dict[str, Figure]:
    if not model.spec.discrete:
        return {}
    statistics = CodeStatistics(model.spec)
    for part in parts:
        statistics.update(part)
    usage = statistics.result()
    share = sum(usage.usage) / len(usage.usage)
    values = {
        "usage": (share, "share"),
        "perplexity": (2 ** (usage.bits_per_token / len(usage.entropy)), "codes"),
        "entropy": (usage.bits_per_token, "bits per token"),
        "tokens": (usage.tokens, "tokens"),
    }
    return {
        f"shapes/{name}/{end}": Figure(value=value, unit=unit, protocol=record, note=usage.note)
        for end, (value, unit) in values.items()
    }


def _random_tokens(model: Autoencoder, count: int) -> Tokens:
    generator, spec = torch.Generator().manual_seed(0), model.spec
    if not spec.discrete:
        return Tokens(latents_BND=torch.randn(count, spec.length, spec.dim, generator=generator), grid=spec.grid)
    streams = [torch.randint(size, (count, spec.length), generator=generator) for size in spec.codes]
    return Tokens(codes_BNS=torch.stack(streams, -1), grid=spec.grid)


def measure_stores(folder: Path) -> Findings:
    """What the training images take as PNG files, and as the tokens of each tokenizer."""
    parts = [_measure_store(folder, name) for name in TOKENIZERS]
    size = sum(path.stat().st_size for path in (folder / "shapes").glob("*.png"))
    png = Figure(value=size, unit="bytes", protocol="Token stores")
    protocol = {
        "bits per image": "as stored: codes take whole bits, latents 16 bits a channel",
        "bytes": "of the token files; of the whole store with keys, captions and checksums",
    }
    return merge([*parts, Findings(figures={"tokens/png/bytes": png}, protocols={"Token stores": protocol})])


def _measure_store(folder: Path, name: str) -> Findings:
    store = TokenDataset(folder / f"tokens_{name}")
    files = [path for path in store.path.iterdir() if path.is_file()]
    tokens = [path for path in files if path.suffix == ".safetensors" and path.stem.isdecimal()]
    values = {
        "images": (len(store), "images"),
        "bits_per_image": (store.spec.stored_bits_per_image, "bits"),
        "bytes": (sum(path.stat().st_size for path in tokens), "bytes"),
        "store_bytes": (sum(path.stat().st_size for path in files), "bytes"),
    }
    return Findings(
        figures={
            f"tokens/{name}/{end}": Figure(value=value, unit=unit, protocol="Token stores")
            for end, (value, unit) in values.items()
        }
    )


def control(
    name: str, read_NA: Tensor, attributes_NA: NDArray[Any], protocol: Mapping[str, Any], *, shuffle: bool = False
) -> Findings:
    """A negative control: readings against captions that the images do not belong to must be at chance.

    Chance is how often readings and captions would agree if neither knew of the other; four standard deviations to
    both sides are allowed.
    """
    target_NA = np.random.default_rng(0).permutation(attributes_NA) if shuffle else attributes_NA
    record = f"Control: {CONTROLS[name].lower()}"
    figures, columns = {}, [[column] for column in range(len(ATTRIBUTES))] + [list(range(len(ATTRIBUTES)))]
    found = accuracy(read_NA, torch.from_numpy(target_NA), ATTRIBUTES)
    for (attribute, value), chosen in zip(found.items(), columns, strict=True):
        read, target = (list(map(tuple, rows[:, chosen].tolist())) for rows in (read_NA, target_NA))
        low, high = chance_range(read, target)
        figures[f"control/{name}/{attribute}"] = Figure(
            value=value, unit="share", protocol=record, at_least=low, at_most=high
        )
    return Findings(
        figures=figures,
        protocols={record: {**protocol, "allowed": "agreement by chance, 4 standard deviations to both sides"}},
    )


def chance_range(read: Sequence[Hashable], target: Sequence[Hashable]) -> tuple[float, float]:
    """How often two independent lists of these values would agree, four standard deviations to both sides."""
    reads, targets = Counter(read), Counter(target)
    chance = sum(reads[value] * count for value, count in targets.items()) / (len(read) * len(target))
    spread = _CHANCE_SIGMAS * math.sqrt(chance * (1 - chance) / len(read))
    return max(0.0, chance - spread), min(1.0, chance + spread)


def scores(judge: AttributeJudge, image_BCHW: Tensor, attributes_NA: NDArray[Any]) -> dict[str, float]:
    """Share of images on which the judge reads each attribute as it should be, and all of them ("joint")."""
    return accuracy(judge.predict(image_BCHW), torch.from_numpy(attributes_NA), ATTRIBUTES)


def as_images(shapes: Shapes) -> Tensor:
    """Float images [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(shapes.images).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def save_stack(folder: Path, name: str, image_BCHW: Tensor) -> None:
    """Save images one below the other as one picture."""
    save_picture(folder, name, np.concatenate(list(to_uint8(image_BCHW).permute(0, 2, 3, 1).numpy())))
