"""Effective bits: what a token costs a model that has seen other images' tokens, on images it has not seen.

A vocabulary of V codes offers log2 V bits, their frequencies leave the marginal entropy, and neighbours leave less:
a small autoregressive transformer is trained on the tokens of one split, and its cross-entropy on another split is an
upper bound on what the tokens say. Beside it stand, fitted and tested on the same splits,

    unigram  frequencies of every stream, one count added to each code
    bigram   frequencies after the code before (same stream), smoothed with the unigram as Witten and Bell (1991) do

A tokenizer of many unpredictable bits has the higher figure: it is a rate, not a quality.

Shape letters: N images, L positions, S streams.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backbones import Autoregressive, AutoregressiveConfig
from tokenizers_mm.api import Batch, Tokenizer, Tokens, TokenSpec
from tokenizers_mm.geometry import Grid
from tokenizers_mm.measure import Measurement, Protocol
from tokenizers_mm.store import codebook_of

__all__ = ["EffectiveBits", "EffectiveBitsConfig", "bigram_bits", "effective_bits", "unigram_bits"]

_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class EffectiveBitsConfig:
    """The small model. The defaults take 40 seconds of one CPU core for 64 tokens an image and 1024 codes."""

    width: int = 64
    depth: int = 2
    heads: int = 4
    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if min(self.steps, self.batch_size) < 1 or not self.learning_rate > 0:
            raise ValueError(f"{self}: expected at least 1 step of at least 1 image, and a positive learning_rate")


@dataclass(frozen=True, kw_only=True)
class EffectiveBits:
    """Bits per position (all streams together) on images that nothing was fitted on.

    capacity  log2 of the vocabulary
    model, unigram, bigram  cross-entropies; a fitted code may cost more than its capacity where it saw too little
    """

    capacity: float
    unigram: float
    bigram: float
    model: float
    positions: int
    train_images: int
    test_images: int
    config: EffectiveBitsConfig

    def measurements(self, protocol: Protocol) -> list[Measurement]:
        """As rows of a table."""
        c = self.config
        note = (
            f"effective bits: transformer of width {c.width}, depth {c.depth}, {c.steps} steps of {c.batch_size} on "
            f"{self.train_images} other images; an upper bound"
        )
        protocol = replace(protocol, samples=self.test_images)
        rows = (("Effective bits", self.model), ("Bigram bits", self.bigram), ("Unigram bits", self.unigram))
        return [
            *(Measurement(name, value, "bits per token", protocol, note) for name, value in rows),
            Measurement("Effective bits per image", self.model * self.positions, "bits", protocol, note),
        ]


def effective_bits(
    tokenizer: Tokenizer,
    train: Iterable[Tensor],
    test: Iterable[Tensor],
    config: EffectiveBitsConfig | None = None,
    device: torch.device | str = "cpu",
) -> EffectiveBits:
    """Measure a discrete tokenizer: images of `train` teach the model, images of `test` are coded.

    Both are batches [B, C, H, W] in [-1, 1] of one size. Raises `ValueError` for continuous tokenizers, where there are
    no images, or images of several sizes. The caller's random state is left alone.
    """
    config, spec = config or EffectiveBitsConfig(), tokenizer.spec
    if not spec.discrete:
        raise ValueError("the tokenizer is continuous: effective bits need codes; its KL is what its latents cost")
    train_NLS, grid = _codes(tokenizer, train, "train", device)
    test_NLS, test_grid = _codes(tokenizer, test, "test", device)
    if grid != test_grid:
        raise ValueError(f"training images have the grid {grid}, test images {test_grid}: resize both to one size")
    spec = replace(spec, grid=grid)
    model = _train(train_NLS, spec, codebook_of(tokenizer, device), config, device)
    return EffectiveBits(
        capacity=sum(math.log2(size) for size in spec.codes),
        unigram=unigram_bits(train_NLS, test_NLS, spec.codes),
        bigram=bigram_bits(train_NLS, test_NLS, spec.codes),
        model=_model_bits(model, test_NLS, spec, device),
        positions=spec.length,
        train_images=len(train_NLS),
        test_images=len(test_NLS),
        config=config,
    )


def unigram_bits(train_NLS: Tensor, test_NLS: Tensor, codes: tuple[int, ...]) -> float:
    """Bits per position under the frequencies of the training codes, one count added to each code."""
    total = 0.0
    for stream, size in enumerate(codes):
        probability_V = _unigram(train_NLS[..., stream], size)
        total -= float(probability_V[test_NLS[..., stream]].log2().mean())
    return total


def bigram_bits(train_NLS: Tensor, test_NLS: Tensor, codes: tuple[int, ...]) -> float:
    """Bits per position where the code before is known (the first has none), backed off to the unigram.

    Only pairs that occur are kept: memory grows with the codes, not with the square of the vocabulary.
    """
    total = 0.0
    for stream, size in enumerate(codes):
        base_V = _unigram(train_NLS[..., stream], size)
        pairs, counts = torch.unique(_pairs(train_NLS[..., stream], size), return_counts=True)
        before = pairs // size
        seen_V = torch.zeros(size, dtype=torch.float64).index_add_(0, before, counts.double())
        kinds_V = torch.zeros(size, dtype=torch.float64).index_add_(0, before, torch.ones_like(counts).double())
        codes_NL = test_NLS[..., stream]
        wanted = _pairs(codes_NL, size)
        place = torch.searchsorted(pairs, wanted).clamp_max(max(0, len(pairs) - 1))
        count = torch.where(pairs[place] == wanted, counts[place], 0).double() if len(pairs) else wanted.double() * 0
        after = wanted // size
        backed = kinds_V[after].clamp_min(1)  # a code that was never followed by any falls back on the unigram alone
        probability = (count + backed * base_V[wanted % size]) / (seen_V[after] + backed)
        first = base_V[codes_NL[:, 0]]
        total -= float(torch.cat([first, probability.flatten()]).log2().mean())
    return total


def _unigram(codes: Tensor, size: int) -> Tensor:
    counts_V = codes.flatten().bincount(minlength=size).double() + 1
    return counts_V / counts_V.sum()


def _pairs(codes_NL: Tensor, size: int) -> Tensor:
    """Every code and the one after it, as one number."""
    return codes_NL[:, :-1] * size + codes_NL[:, 1:]


def _codes(
    tokenizer: Tokenizer, images: Iterable[Tensor], part: str, device: torch.device | str
) -> tuple[Tensor, Grid]:
    with torch.no_grad():
        tokens = [tokenizer.encode(image_BCHW.to(device)).check(tokenizer.spec) for image_BCHW in images]
    if not tokens:
        raise ValueError(f"{part} is empty: effective bits need images to learn from and others to code")
    grids = {batch.grid for batch in tokens}
    if len(grids) > 1:
        raise ValueError(f"{part}: images have the grids {sorted(map(str, grids))}: resize them to one size")
    return torch.cat([batch.data.cpu() for batch in tokens]), tokens[0].grid


def _train(
    codes_NLS: Tensor,
    spec: TokenSpec,
    codebook_VD: Tensor | None,
    config: EffectiveBitsConfig,
    device: torch.device | str,
) -> Autoregressive:
    """An unconditional model: one class, never dropped."""
    options = AutoregressiveConfig(
        width=config.width, depth=config.depth, heads=config.heads, classes=1, text_weight=0.0, drop_condition=0.0
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = Autoregressive(options, spec, codebook_VD).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
        for _ in range(config.steps):
            rows = torch.randint(len(codes_NLS), (config.batch_size,))
            loss = model.loss(_batch(codes_NLS[rows], spec, device))["image"]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def _model_bits(model: Autoregressive, codes_NLS: Tensor, spec: TokenSpec, device: torch.device | str) -> float:
    nats = 0.0
    for part_NLS in torch.split(codes_NLS, _CHUNK):
        batch = _batch(part_NLS, spec, device)
        assert batch.tokens.codes_BNS is not None
        assert batch.labels_B is not None
        nats += sum(float(stream.double().sum()) for stream in model.image_nats(batch.tokens.codes_BNS, batch.labels_B))
    return nats / math.log(2) / (len(codes_NLS) * spec.length)


def _batch(codes_BLS: Tensor, spec: TokenSpec, device: torch.device | str) -> Batch:
    labels_B = torch.zeros(len(codes_BLS), dtype=torch.int64)
    tokens = Tokens(codes_BNS=codes_BLS, grid=spec.grid).check(spec)
    return Batch(tokens, labels_B=labels_B, label_range=(0, 0)).to(device)
