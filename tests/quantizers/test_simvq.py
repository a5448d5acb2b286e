"""SimVQ: every row moves with the matrix, so it covers the data where free rows die; same numbers as the peer's."""

import copy

import pytest
import torch
import vector_quantize_pytorch as vqp
from torch import nn

from quantizers import SimVQ


def cloud(count, seed, dim=8):
    """Correlated vectors away from the origin."""
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99))
    return (torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) @ mix + 2)[None]


def learned(quantizer, steps=300):
    optimizer = torch.optim.Adam(quantizer.parameters(), 3e-2)
    for seed in range(steps):
        optimizer.zero_grad()
        quantizer(cloud(256, seed)).loss.backward()
        optimizer.step()
    return quantizer.eval()


@torch.no_grad()
def error_and_usage(quantizer):
    z = cloud(2000, seed=1000)
    codes = quantizer.encode(z)
    return float((quantizer.decode(codes) - z).square().mean()), len(codes.unique())


def free_rows_of(simvq):
    """The same rows, each on its own: a frozen identity makes the matrix the codebook itself."""
    free = SimVQ(simvq.size, simvq.dim, frozen_dim=simvq.size)
    free.frozen_KD.copy_(torch.eye(simvq.size))
    with torch.no_grad():
        free.transform.weight.copy_(simvq.rows().T)
    return free


def test_it_learns_and_keeps_rows_in_use_that_die_when_free():
    simvq = SimVQ(512, 8)
    free, still = free_rows_of(simvq), copy.deepcopy(simvq).eval()
    torch.testing.assert_close(free.rows(), simvq.rows())
    still_error, still_usage = error_and_usage(still)
    free_error, free_usage = error_and_usage(learned(free))
    error, usage = error_and_usage(learned(simvq))
    assert error < 0.4 * still_error
    assert error < 0.8 * free_error
    assert max(still_usage, free_usage) < 100 < 200 < usage


@pytest.mark.parametrize("estimator", ["rotation", "straight_through"])
def test_forward_loss_and_gradients_are_the_peers(estimator):
    ours = SimVQ(32, 6, commitment=0.5, estimator=estimator, frozen_dim=4)
    theirs = vqp.SimVQ(
        dim=6,
        codebook_size=32,
        codebook_transform=nn.Linear(4, 6, bias=False),
        frozen_codebook_dim=4,
        rotation_trick=estimator == "rotation",
        input_to_quantize_commit_loss_weight=0.5,
    )
    ours.load_state_dict({"frozen_KD": theirs.frozen_codebook, "transform.weight": theirs.code_transform.weight})
    z = torch.randn(2, 50, 6)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    out, (vectors, codes, loss) = ours(a), theirs(b)
    assert torch.equal(out.codes_BNS[..., 0], codes)
    torch.testing.assert_close(out.z_BND, vectors, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.loss, loss)
    weight = torch.randn_like(z)
    ((out.z_BND * weight).sum() + out.loss).backward()
    ((vectors * weight).sum() + loss).backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.transform.weight.grad, theirs.code_transform.weight.grad, atol=1e-6, rtol=1e-4)


def test_it_starts_as_the_peer_does():
    ours, theirs = SimVQ(4096, 64), vqp.SimVQ(dim=64, codebook_size=4096)
    torch.testing.assert_close(ours.frozen_KD.std(), theirs.frozen_codebook.std(), atol=0, rtol=0.02)
    torch.testing.assert_close(ours.rows().std(), theirs.codebook.std(), atol=0, rtol=0.05)
    assert (ours.commitment, ours.codebook) == (theirs.input_to_quantize_commit_loss_weight, theirs.commitment_weight)
    assert (ours.estimator == "rotation") == theirs.rotation_trick


def test_only_the_matrix_learns_and_decode_reaches_it():
    simvq = SimVQ(16, 4)
    assert set(dict(simvq.named_parameters())) == {"transform.weight"}
    codes = torch.tensor([[[3], [5], [3]]])
    vectors = simvq.decode(codes)
    torch.testing.assert_close(vectors, simvq.rows()[codes[..., 0]])
    vectors.square().sum().backward()
    expected = torch.autograd.grad(simvq.rows()[codes[..., 0]].square().sum(), simvq.transform.weight)[0]
    torch.testing.assert_close(simvq.transform.weight.grad, expected)


def test_masked_positions_do_not_count():
    simvq = SimVQ(16, 4)
    z, mask = torch.randn(2, 6, 4), torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    grads = []
    for fill in (0.0, 50.0):
        simvq.zero_grad()
        out = simvq(torch.where(mask[..., None], z, fill), mask)
        out.loss.backward()
        grads.append((out.loss.detach(), simvq.transform.weight.grad.clone()))
    alone = simvq(torch.cat([z[0, :4], z[1]])[None])
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
    torch.testing.assert_close(grads[0][0], alone.loss.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size=1"),
        ({"dim": 0}, "dim=0"),
        ({"frozen_dim": 0}, "frozen_dim=0"),
        ({"commitment": -1.0}, "commitment=-1.0"),
        ({"codebook": -0.5}, "codebook=-0.5"),
        ({"estimator": "diveq"}, "estimator='diveq'.*rotation, straight_through"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SimVQ(**({"size": 8, "dim": 4} | options))
