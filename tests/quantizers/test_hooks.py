"""What only some kinds have is asked of every kind: posteriors, scales, vectors of the codes' own positions."""

import math

import pytest
import torch

from quantizers import build

GRID = (2, 4)


def built(options):
    torch.manual_seed(0)
    return build(options).eval()


def features(quantizer, batch=2):
    return torch.randn(batch, math.prod(GRID), quantizer.in_dim, generator=torch.Generator().manual_seed(1))


def test_moments_say_how_many_channels_come_in_for_each_that_goes_out(example):
    quantizer = built(example)
    assert quantizer.moments == (2 if example["kind"] == "gaussian" else 1)
    if example["kind"] != "gumbel":  # which has a width of its own for what it receives
        assert quantizer.in_dim == quantizer.moments * quantizer.dim


def test_only_a_gaussian_has_a_posterior(example):
    quantizer, generator = built(example), torch.Generator().manual_seed(3)
    z = features(quantizer)
    if example["kind"] != "gaussian":
        for ask in (lambda: quantizer.posterior(z), lambda: quantizer.sample(z, generator)):
            with pytest.raises(ValueError, match=f"^{quantizer.kind} has no posterior.*only gaussian has"):
                ask()
        return
    mean, logvar = quantizer.posterior(z)
    assert torch.equal(torch.cat([mean, logvar], -1), z)
    assert torch.equal(mean, quantizer.encode(z))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    drawn = quantizer.sample(z, generator)
    assert torch.equal(drawn, mean + (0.5 * logvar).exp() * noise)
    assert not torch.equal(drawn, quantizer.sample(z, generator))  # the generator moved on


def test_grids_of_codes_and_of_maps(example):
    quantizer = built(example)
    grid = quantizer.code_grid(GRID)
    if example["kind"] == "multiscale":
        assert grid == ((1, 1), (1, 2), (2, 4))
        with pytest.raises(ValueError, match=r"grid=\(4, 2\): multiscale expects \(2, 4\)"):
            quantizer.code_grid((4, 2))
        for other in ((2, 4), ((1, 1), (2, 4))):
            with pytest.raises(ValueError, match=r"grid=\(.*multiscale decodes.*\(\(1, 1\), \(1, 2\), \(2, 4\)\)"):
                quantizer.input_grid(other)
        sides = grid
    else:
        assert (grid, quantizer.code_grid((5,)), quantizer.input_grid((5,))) == (GRID, (5,), (5,))
        sides = (grid,)
    assert quantizer.input_grid(grid) == GRID
    assert sum(math.prod(side) for side in sides) == quantizer.length(math.prod(GRID))


def test_vectors_of_the_codes_own_positions(example):
    quantizer = built(example)
    payload = quantizer.encode(features(quantizer))
    with torch.no_grad():
        vectors = quantizer.vectors(payload)
        assert vectors.shape == (*payload.shape[:2], quantizer.dim)
        if example["kind"] != "multiscale":
            assert torch.equal(vectors, quantizer.decode(payload))
            return
        assert torch.equal(vectors, quantizer.quantizer.codebook_KD[payload[..., 0]])
    with pytest.raises(ValueError, match="stream 0 lie in"):
        quantizer.vectors(payload + 12)


def test_only_scales_can_be_changed(example):
    quantizer = built(example)
    if example["kind"] == "multiscale":
        assert quantizer.with_scales([1, 3]).code_grid((3, 3)) == ((1, 1), (3, 3))
        return
    with pytest.raises(ValueError, match=rf"scales=\[1, 3\]: {quantizer.kind} has no scales.*any image size"):
        quantizer.with_scales([1, 3])
