"""What only some kinds have is asked of every kind: posteriors, scales, vectors of the codes' own positions."""

import math

import pytest
import torch

from quantizers import KINDS, build

VQ4, BITS = {"kind": "vq", "size": 12, "dim": 4}, {"kind": "bsq", "dim": 4}
EXAMPLES = [
    {"kind": "fsq", "levels": [5, 3, 3]},
    {"kind": "latent", "levels": [5, 3]},
    VQ4,
    {"kind": "gaussian", "dim": 3},
    {"kind": "identity", "dim": 3},
    {"kind": "simvq", "size": 12, "dim": 4},
    {"kind": "ibq", "size": 12, "dim": 4},
    {"kind": "gumbel", "size": 12, "dim": 4, "in_dim": 6},
    {"kind": "lfq", "dim": 6, "streams": 2},
    BITS,
    {"kind": "residual", "inner": VQ4, "depth": 3},
    {"kind": "product", "inner": VQ4, "groups": 2},
    {"kind": "projected", "inner": BITS, "in_dim": 6},
    {"kind": "multiscale", "inner": VQ4, "scales": [[1, 1], [1, 2], [2, 4]], "phi": 1},
]
GRID = (2, 4)

every_kind = pytest.mark.parametrize("options", EXAMPLES, ids=lambda options: options["kind"])


def test_every_kind_has_an_example():
    assert {options["kind"] for options in EXAMPLES} == set(KINDS)


def built(options):
    torch.manual_seed(0)
    return build(options).eval()


def features(quantizer, batch=2):
    return torch.randn(batch, math.prod(GRID), quantizer.in_dim, generator=torch.Generator().manual_seed(1))


@every_kind
def test_moments_say_how_many_channels_come_in_for_each_that_goes_out(options):
    quantizer = built(options)
    assert quantizer.moments == (2 if options["kind"] == "gaussian" else 1)
    if options["kind"] != "gumbel":  # which has a width of its own for what it receives
        assert quantizer.in_dim == quantizer.moments * quantizer.dim


@every_kind
def test_only_a_gaussian_has_a_posterior(options):
    quantizer, generator = built(options), torch.Generator().manual_seed(3)
    z = features(quantizer)
    if options["kind"] != "gaussian":
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


@every_kind
def test_grids_of_codes_and_of_maps(options):
    quantizer = built(options)
    grid = quantizer.code_grid(GRID)
    if options["kind"] == "multiscale":
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


@every_kind
def test_vectors_of_the_codes_own_positions(options):
    quantizer = built(options)
    payload = quantizer.encode(features(quantizer))
    with torch.no_grad():
        vectors = quantizer.vectors(payload)
        assert vectors.shape == (*payload.shape[:2], quantizer.dim)
        if options["kind"] != "multiscale":
            assert torch.equal(vectors, quantizer.decode(payload))
            return
        assert torch.equal(vectors, quantizer.quantizer.codebook_KD[payload[..., 0]])
    with pytest.raises(ValueError, match="stream 0 lie in"):
        quantizer.vectors(payload + 12)


@every_kind
def test_only_scales_can_be_changed(options):
    quantizer = built(options)
    if options["kind"] == "multiscale":
        assert quantizer.with_scales([1, 3]).code_grid((3, 3)) == ((1, 1), (3, 3))
        return
    with pytest.raises(ValueError, match=rf"scales=\[1, 3\]: {quantizer.kind} has no scales.*any image size"):
        quantizer.with_scales([1, 3])
