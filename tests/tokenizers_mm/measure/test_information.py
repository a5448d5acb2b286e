from __future__ import annotations

import math

import pytest
import torch

from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.measure.information import CodeStatistics, entropy_bits, kl_bits

SPEC = TokenSpec(image_size=(32, 32), grid=(4, 4), dim=4, codes=(16, 4))


def test_uniform_codes_carry_all_their_bits() -> None:
    statistics = CodeStatistics(SPEC)
    first = torch.arange(16).view(1, 16)
    statistics.update(Tokens(codes_BNS=torch.stack([first, first % 4], -1), grid=(4, 4)))
    result = statistics.result()
    assert result.entropy == pytest.approx((4.0, 2.0), abs=1e-12)
    assert result.perplexity == pytest.approx((16.0, 4.0), abs=1e-9)
    assert result.usage == (1.0, 1.0)
    assert result.bits_per_token == pytest.approx(6.0, abs=1e-12)
    assert result.bits_per_pixel == pytest.approx(6.0 * 16 / 1024, abs=1e-12) == SPEC.bits_per_pixel
    assert result.note == ""


def test_one_code_carries_nothing() -> None:
    statistics = CodeStatistics(SPEC)
    statistics.update(Tokens(codes_BNS=torch.full((3, 16, 2), 2), grid=(4, 4)))
    result = statistics.result()
    assert result.entropy == (0.0, 0.0)
    assert result.perplexity == (1.0, 1.0)
    assert result.usage == (1 / 16, 1 / 4)
    assert (result.images, result.tokens) == (3, 48)


def test_batches_add_up_to_the_whole() -> None:
    codes = torch.randint(0, 4, (10, 16, 2), generator=torch.Generator().manual_seed(0)) ** 2 // 3
    whole, parts = CodeStatistics(SPEC), CodeStatistics(SPEC)
    whole.update(Tokens(codes_BNS=codes, grid=(4, 4)))
    for part in torch.split(codes, 3):
        parts.update(Tokens(codes_BNS=part, grid=(4, 4)))
    assert whole.result() == parts.result()
    counts = codes[..., 0].flatten().bincount(minlength=16)
    share = [count / 160 for count in counts.tolist() if count]
    assert whole.result().entropy[0] == pytest.approx(-sum(p * math.log2(p) for p in share), abs=1e-12)


def test_a_huge_vocabulary_costs_only_what_was_seen() -> None:
    spec = TokenSpec(image_size=(32, 32), grid=(4, 4), dim=36, codes=(2**36,))
    statistics = CodeStatistics(spec)
    statistics.update(Tokens(codes_BNS=(torch.arange(16) * 2**32).view(1, 16, 1), grid=(4, 4)))
    result = statistics.result()
    assert result.used == (16,)
    assert result.note.startswith("16 tokens for 68719476736 codes: usage cannot exceed 0.0%, entropy log2(16) = 4.00")


def test_entropy_of_known_distributions() -> None:
    assert entropy_bits(torch.tensor([2, 1, 1, 0])) == pytest.approx(1.5, abs=1e-12)
    assert entropy_bits(torch.tensor([7])) == 0.0


def test_kl_of_known_gaussians() -> None:
    zero = torch.zeros(2, 5, 3)
    assert kl_bits(zero, zero).tolist() == [0.0, 0.0]
    shifted = kl_bits(zero + 2, zero)
    assert shifted.tolist() == pytest.approx([15 * 2 / math.log(2)] * 2, abs=1e-9)
    posterior = torch.distributions.Normal(torch.tensor(0.3), torch.tensor(0.5))
    reference = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).item()
    assert kl_bits(zero[:1] + 0.3, zero[:1] + 2 * math.log(0.5)).item() == pytest.approx(
        15 * reference / math.log(2), rel=1e-6
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="continuous: code statistics need codes"):
        CodeStatistics(TokenSpec(image_size=(32, 32), grid=(4, 4), dim=4))
    with pytest.raises(ValueError, match="no tokens were added"):
        CodeStatistics(SPEC).result()
    with pytest.raises(ValueError, match=r"the vocabulary is 0\.\.3"):
        CodeStatistics(SPEC).update(Tokens(codes_BNS=torch.full((1, 16, 2), 7), grid=(4, 4)))
