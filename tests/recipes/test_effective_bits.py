"""Effective bits against sources whose entropy is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recipes.joint.effective_bits import EffectiveBitsConfig, bigram_bits, effective_bits, unigram_bits
from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.measure.protocol import Protocol

FAST = EffectiveBitsConfig(width=32, depth=1, heads=2, steps=60, batch_size=24, learning_rate=1e-2)


class Levels:
    """Every pixel of a 4 x 4 image is a position; red has four levels, green two."""

    spec = TokenSpec(image_size=(4, 4), grid=(4, 4), dim=2, codes=(4, 2))

    def encode(self, image_BCHW: Tensor) -> Tokens:
        scale = torch.tensor([1.5, 0.5])[:, None, None]
        codes = ((image_BCHW[:, :2] + 1) * scale).round().long()
        return Tokens(codes_BNS=codes.flatten(2).transpose(1, 2), grid=tuple(image_BCHW.shape[2:]))

    def embed(self, tokens: Tokens) -> Tensor:
        return tokens.data.float()

    def decode(self, tokens: Tokens) -> Tensor:
        raise AssertionError("rates need no decoder")


def images(count: int, seed: int, copied: bool) -> Tensor:
    """Uniform codes; copied: green is the parity of red."""
    generator = torch.Generator().manual_seed(seed)
    red = torch.randint(0, 4, (count, 4, 4), generator=generator)
    green = torch.randint(0, 2, (count, 4, 4), generator=generator)
    if copied:
        green = red % 2
    return torch.stack([red / 1.5 - 1, green / 0.5 - 1, torch.zeros(count, 4, 4)], 1)


def test_random_codes_cost_their_capacity() -> None:
    train, test = images(400, 0, copied=False), images(200, 1, copied=False)
    bits = effective_bits(Levels(), [train[:150], train[150:]], [test], FAST)
    assert bits.capacity == 3.0
    assert bits.unigram == pytest.approx(3.0, abs=0.02)
    assert bits.bigram == pytest.approx(3.0, abs=0.1)
    assert bits.model == pytest.approx(3.0, abs=0.1)


def test_the_model_finds_what_frequencies_do_not() -> None:
    """Green is known once red is: two of the three bits, which neither frequencies nor the code before can tell."""
    bits = effective_bits(Levels(), [images(400, 0, copied=True)], [images(200, 1, copied=True)], FAST)
    assert bits.unigram == pytest.approx(3.0, abs=0.02)
    assert bits.bigram == pytest.approx(3.0, abs=0.1)
    assert bits.model == pytest.approx(2.0, abs=0.1)


def test_unigram_by_hand() -> None:
    train = torch.tensor([0, 0, 1]).view(1, 3, 1)
    test = torch.tensor([0, 3]).view(1, 2, 1)
    assert unigram_bits(train, test, (4,)) == pytest.approx((-math.log2(3 / 7) - math.log2(1 / 7)) / 2)


def test_bigram_by_hand() -> None:
    train = torch.tensor([0, 1, 0, 1, 0, 2]).view(1, 6, 1)
    base = torch.tensor([4, 3, 2, 1]) / 10
    # After 0: 1 twice and 2 once, so three followers of two kinds; nothing was seen after 3.
    test = torch.tensor([0, 1, 3, 0]).view(1, 4, 1)
    expected = [base[0], (2 + 2 * base[1]) / 5, (0 + 1 * base[3]) / 3, base[0]]
    assert bigram_bits(train, test, (4,)) == pytest.approx(-sum(math.log2(p) for p in expected) / 4)


def test_a_code_is_a_distribution_over_the_next_symbol() -> None:
    train = torch.randint(0, 5, (20, 6, 1))
    total = sum(
        2 ** (-2 * bigram_bits(train, torch.tensor([first, second]).view(1, 2, 1), (5,)))
        for first in range(5)
        for second in range(5)
    )
    assert total == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_bits_and_the_random_state_stays() -> None:
    train, test = images(40, 0, copied=True), images(20, 1, copied=True)
    config = EffectiveBitsConfig(width=16, depth=1, heads=1, steps=3, batch_size=8)
    state = torch.get_rng_state()
    first = effective_bits(Levels(), [train], [test], config)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    assert effective_bits(Levels(), [train], [test], config) == first
    rows = {row.name: row for row in first.measurements(Protocol(reference="x"))}
    assert rows["Effective bits per image"].value == pytest.approx(16 * rows["Effective bits"].value)
    assert "3 steps of 8 on 40 other images" in rows["Effective bits"].note
    assert rows["Bigram bits"].protocol.samples == 20


def test_bad_input_is_refused() -> None:
    class Continuous(Levels):
        spec = TokenSpec(image_size=(4, 4), grid=(4, 4), dim=2)

    some = images(4, 0, copied=False)
    with pytest.raises(ValueError, match=r"tokenizer.*continuous: effective"):
        effective_bits(Continuous(), [some], [some], FAST)
    with pytest.raises(ValueError, match="train is empty"):
        effective_bits(Levels(), [], [some], FAST)
    with pytest.raises(ValueError, match="test is empty"):
        effective_bits(Levels(), [some], [], FAST)
    wide = torch.cat([some, some], 3)
    with pytest.raises(ValueError, match="train: images have the grids"):
        effective_bits(Levels(), [some, wide], [some], FAST)
    with pytest.raises(ValueError, match=r"training images.*\(4, 8\),.*images \(4, 4\)"):
        effective_bits(Levels(), [wide], [some], FAST)
    with pytest.raises(ValueError, match="expected at least 1 step"):
        EffectiveBitsConfig(steps=0)
