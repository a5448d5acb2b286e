"""Rotary positions against complex numbers."""

import cmath

import pytest
import torch

from tokenizers_mm.blocks.rotary import rotate, rotation


def turned(x_D, place, base):
    """Channels i and i + D / 2 are a complex number; each axis of the place turns its share of them."""
    half, out_D = len(x_D) // 2, torch.empty_like(x_D)
    share = half // len(place)
    for pair in range(half):
        frequency = base ** (-(pair % share) / share)
        z = complex(x_D[pair], x_D[pair + half]) * cmath.exp(1j * float(place[pair // share]) * frequency)
        out_D[pair], out_D[pair + half] = z.real, z.imag
    return out_D


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("base", [100.0, 10_000.0])
def test_pairs_are_turned_as_complex_numbers(axes, base):
    torch.manual_seed(0)
    x_BLHD, place_BLA = torch.randn(2, 4, 3, 12, dtype=torch.float64), 3 * torch.randn(2, 4, axes, dtype=torch.float64)
    found = rotate(x_BLHD, rotation(place_BLA, 12, base))
    wanted = torch.stack(
        [
            turned(x_BLHD[b, i, h], place_BLA[b, i], base)
            for b, i, h in torch.cartesian_prod(*map(torch.arange, (2, 4, 3)))
        ]
    )
    torch.testing.assert_close(found.flatten(0, 2), wanted, atol=1e-5, rtol=0)  # angles are float32
    assert not torch.allclose(rotate(x_BLHD, rotation(place_BLA, 12, 2 * base)).flatten(0, 2), wanted, atol=1e-3)


def test_positions_are_shared_by_the_batch_or_are_each_their_own():
    x_BLHD, place_LA = torch.randn(2, 4, 3, 8), torch.randn(4, 2)
    shared = rotate(x_BLHD, rotation(place_LA, 8, 100.0))
    assert torch.equal(shared, rotate(x_BLHD, rotation(place_LA.expand(2, -1, -1), 8, 100.0)))
    assert torch.equal(rotate(x_BLHD, rotation(torch.zeros(4, 2), 8, 100.0)), x_BLHD)


def test_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64)

    def product(at, other):
        turns = (rotation(torch.tensor([place], dtype=torch.float64), 8, 100.0) for place in (at, other))
        return float((rotate(q, next(turns)) * rotate(k, next(turns))).sum())

    here = product((0, 0), (1, 2))
    assert here == pytest.approx(product((5, -3), (6, -1)), abs=1e-5)
    others = [product((0, 0), at) for at in ((2, 1), (-1, 2), (1, -2), (1, 3))]
    assert min(abs(here - other) for other in others) > 1e-2  # rows, columns and signs are told apart
    assert product((0, 0), (0, 0)) == pytest.approx(float((q * k).sum()))


def test_weights_for_neighbouring_pairs_fit_after_a_permutation():
    """What the module says about the other layout of pairs, (2i, 2i + 1)."""
    q_LD, k_LD = torch.randn(2, 5, 8, dtype=torch.float64)
    angle = torch.arange(5.0, dtype=torch.float64)[:, None] * 100.0 ** (-torch.arange(4) / 4)

    def neighbours(x_LD):
        return torch.view_as_real(
            torch.view_as_complex(x_LD.view(5, 4, 2)) * torch.polar(torch.ones(1).double(), angle)
        ).flatten(1)

    halves = torch.arange(8).view(4, 2).T.flatten()
    turns = rotation(torch.arange(5.0)[:, None], 8, 100.0)
    ours = [rotate(x_LD[:, None, halves], turns)[:, 0] for x_LD in (q_LD, k_LD)]
    torch.testing.assert_close(ours[0] @ ours[1].T, neighbours(q_LD) @ neighbours(k_LD).T, atol=1e-5, rtol=0)
    unpermuted = [rotate(x_LD[:, None], turns)[:, 0] for x_LD in (q_LD, k_LD)]
    assert not torch.allclose(unpermuted[0] @ unpermuted[1].T, neighbours(q_LD) @ neighbours(k_LD).T, atol=1e-2)


@pytest.mark.parametrize(("axes", "dim"), [(1, 7), (2, 6), (3, 8)])
def test_channels_that_the_axes_cannot_share_are_refused(axes, dim):
    with pytest.raises(ValueError, match=f"dim={dim}: {axes} axes"):
        rotation(torch.zeros(4, axes), dim, 100.0)
