"""LFQ, and what it shares with BSQ: bits and streams, the loss in its parts, and what the entropy term is for."""

import pytest
import torch
import vector_quantize_pytorch as vqp
from torch import nn

from quantizers import BSQ, LFQ, kernels

every_kind = pytest.mark.parametrize("kind", [LFQ, BSQ])


def entropies(latent, values, temperature):
    """The definition: softmax over all codes of -|z - c|^2 / temperature, in float64."""
    codes = torch.cartesian_prod(*[torch.tensor([-values, values], dtype=torch.float64)] * latent.shape[1])
    probability = (-(torch.cdist(latent.double(), codes) ** 2) / temperature).softmax(-1)
    return torch.special.entr(probability).sum(1).mean(), torch.special.entr(probability.mean(0)).sum()


@every_kind
def test_loss_is_the_sum_of_its_parts(kind):
    quantizer = kind(8, commitment=0.3, entropy=0.2, diversity=1.5, temperature=0.4)
    z = torch.randn(2, 100, 8)
    out = quantizer(z)
    flat = z.flatten(0, 1)
    latent = flat / flat.norm(dim=1, keepdim=True) if kind is BSQ else flat
    sample, codebook = entropies(latent, quantizer.scale, 0.4)
    torch.testing.assert_close(out.stats["sample_entropy"].double(), sample, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.stats["codebook_entropy"].double(), codebook, rtol=1e-6, atol=0)
    commitment = (latent - latent.sign() * quantizer.scale).square().mean()
    torch.testing.assert_close(out.loss.double(), 0.3 * commitment + 0.2 * (sample - 1.5 * codebook))
    assert float(quantizer.eval()(z).loss) == 0
    assert quantizer(z).stats == {}


@every_kind
def test_step_is_that_of_vector_quantize_pytorch(kind):
    """Codes, vectors, loss and gradient, up to the 1e-5 at which it cuts logarithms off."""
    ours = kind(6, commitment=0.5)
    theirs = vqp.LFQ(dim=6, codebook_size=64, commitment_loss_weight=0.5, spherical=kind is BSQ).train()
    # small vectors for LFQ: at temperature 0.01 others are certain, and the comparison empty
    z = (torch.randn(1, 200, 6) * (1 if kind is BSQ else 0.05)).requires_grad_()
    out, (vectors, indices, loss) = ours(z), theirs(z)
    assert torch.equal(out.codes_BNS[..., 0], indices)
    torch.testing.assert_close(out.z_BND, vectors)
    torch.testing.assert_close(out.loss, loss, rtol=1e-3, atol=1e-5)
    a, b = (
        torch.autograd.grad((v * 0.01).square().sum() + x, z)[0] for v, x in ((out.z_BND, out.loss), (vectors, loss))
    )
    torch.testing.assert_close(a, b, rtol=0, atol=0.01 * float(b.abs().max()))
    assert float(out.stats["sample_entropy"]) > 0.01


@every_kind
def test_streams_are_read_in_turn_and_their_entropies_averaged(kind):
    one, two = kind(8, temperature=0.5), kind(8, temperature=0.5, streams=2)
    z = torch.randn(2, 30, 8)
    a, b = one(z), two(z)
    assert (one.codes, two.codes) == ((256,), (16, 16))
    assert torch.equal(a.codes_BNS[..., 0], b.codes_BNS[..., 0] * 16 + b.codes_BNS[..., 1])
    assert torch.equal(a.z_BND, b.z_BND)
    torch.testing.assert_close(a.stats["sample_entropy"], 2 * b.stats["sample_entropy"])
    grouped = kind(8, temperature=0.5, entropy_group=4)(z)
    torch.testing.assert_close(grouped.stats["codebook_entropy"], 2 * b.stats["codebook_entropy"])
    assert float(grouped.stats["codebook_entropy"]) > float(a.stats["codebook_entropy"])


@every_kind
def test_bit_order(kind):
    z = torch.randn(2, 30, 12)
    msb, lsb = (kind(12, streams=3, bit_order=order).encode(z) for order in ("msb", "lsb"))
    weight = torch.tensor([8, 4, 2, 1])
    bit = (z > 0).long().unflatten(-1, (3, 4))
    assert torch.equal(msb, (bit * weight).sum(-1))
    assert torch.equal(lsb, (bit * weight.flip(0)).sum(-1))


@every_kind
@pytest.mark.parametrize(("dim", "streams"), [(64, 2), (64, 4), (62, 1), (3000, 100)])
def test_thousands_of_bits(kind, dim, streams):
    """No table of codes can exist here; the whole step runs, and codes and vectors are inverses."""
    width = dim // streams
    quantizer = kind(dim, streams=streams, entropy_group=next(g for g in (16, 8, 15, 2) if width % g == 0))
    z = torch.randn(2, 3, dim, requires_grad=True)
    out = quantizer(z)
    out.loss.backward()
    assert bool(z.grad.isfinite().all())
    assert bool((z.grad != 0).any())
    assert torch.equal(quantizer.decode(out.codes_BNS) > 0, z > 0)
    assert torch.equal(quantizer.codes_of(quantizer.decode(out.codes_BNS)), out.codes_BNS)
    packed = kernels.pack_bits(out.codes_BNS.flatten(0, 1), dim)
    assert packed.shape == (6, -(-dim // 8))
    assert torch.equal(kernels.unpack_bits(packed, dim, streams=streams).view_as(out.codes_BNS), out.codes_BNS)


@every_kind
def test_a_mask_leaves_the_losses_of_what_is_real(kind):
    quantizer, mask = kind(6, temperature=0.5), torch.rand(3, 20) < 0.5
    z = torch.randn(3, 20, 6)
    masked, alone = quantizer(z, mask), quantizer(z[mask][None])
    torch.testing.assert_close(masked.loss, alone.loss)
    torch.testing.assert_close(masked.stats, alone.stats)
    assert abs(float(quantizer(z).loss - alone.loss)) > 1e-3


@every_kind
def test_without_entropy_it_is_not_computed_and_any_stream_is_possible(kind):
    quantizer = kind(60, entropy=0.0)
    out = quantizer(torch.randn(2, 5, 60))
    assert out.stats == {}
    assert float(out.loss) > 0
    with pytest.raises(ValueError, match="entropy_group=None: the joint entropy of 60 bits"):
        kind(60)


@every_kind
def test_evaluation_returns_exact_rows_and_still_lets_gradients_through(kind):
    quantizer = kind(6).eval()
    z = torch.randn(2, 5, 6)
    assert torch.equal(quantizer(z).z_BND, quantizer.decode(quantizer.encode(z)))
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(quantizer(z).z_BND.square().sum(), z)
    assert bool((gradient != 0).all()) or kind is BSQ
    with torch.no_grad():
        assert not quantizer(z).z_BND.requires_grad


def test_scale_is_that_of_the_values():
    z = torch.randn(1, 9, 4)
    assert torch.equal(LFQ(4, scale=0.25).eval()(z).z_BND, z.sign() * 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim=0: expected at least 1 channel"),
        ({"dim": 6, "streams": 4}, "streams=4: expected a divisor of the 6 channels"),
        ({"dim": 63}, "streams=1: 63 bits do not fit a code of at most 62"),
        ({"dim": 21}, "entropy_group=None: the joint entropy of 21 bits"),
        ({"dim": 42, "entropy_group": 21}, r"entropy_group=21: expected a divisor of 42 in 1\.\.20"),
        ({"dim": 12, "streams": 2, "entropy_group": 4}, "entropy_group=4: expected a divisor of 6"),
        ({"dim": 6, "entropy_group": 0}, "entropy_group=0: expected a divisor"),
        ({"dim": 6, "commitment": -1.0}, "commitment=-1.0: may not be negative"),
        ({"dim": 6, "entropy": -0.1}, "entropy=-0.1: may not be negative"),
        ({"dim": 6, "diversity": float("nan")}, "diversity=nan: may not be negative"),
        ({"dim": 6, "temperature": 0.0}, "temperature=0.0: expected a positive number"),
        ({"dim": 6, "bit_order": "big"}, "bit_order='big': expected msb or lsb"),
    ],
)
@every_kind
def test_bad_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="scale=0: expected a positive number"):
        LFQ(6, scale=0)


def learn(quantizer, seed):
    """Codes in use and relative error of a linear autoencoder of 64 clusters, corners of a rotated and shifted cube."""
    torch.manual_seed(seed)
    corner = torch.cartesian_prod(*[torch.tensor([-1.0, 1])] * 6)
    centre = corner @ torch.linalg.qr(torch.randn(16, 16))[0][:6] + 0.75 * torch.randn(16)
    encoder, decoder = nn.Linear(16, 6), nn.Linear(6, 16)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)
    for _ in range(300):
        x = centre[torch.randint(64, (1, 256))] + 0.1 * torch.randn(1, 256, 16)
        out = quantizer(encoder(x))
        loss = (decoder(out.z_BND) - x).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = quantizer.eval()(encoder(centre[None]))
    error = (decoder(out.z_BND) - centre).square().mean() / (centre - centre.mean(0)).square().mean()
    return len(out.codes_BNS.unique()), float(error.detach())


@pytest.mark.parametrize(("kind", "temperature"), [(LFQ, 0.1), (BSQ, 0.3)])
def test_the_entropy_term_puts_codes_to_use(kind, temperature):
    """Of 64 clusters and codes, over three runs, against the same without that term."""
    runs = [[learn(kind(6, entropy=w, temperature=temperature), seed) for seed in range(3)] for w in (0.0, 0.1)]
    (used_without, error_without), (used, error) = (map(sum, zip(*results, strict=True)) for results in runs)
    assert used > 1.25 * used_without > 3 * 12
    assert used > 3 * 48
    assert error < 0.7 * error_without
