"""IBQ: the dense formula without its memory; where chosen rows alone learn, the others die."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from quantizers import IBQ
from quantizers.kernels import softmax
from quantizers.straight_through import straight_through


def dense(ibq, z, mask):
    """Vectors and loss by the definition, N x K, on real positions alone."""
    z = z[mask]
    score = z @ ibq.codebook_KD.T
    soft, hard = score.softmax(-1), nn.functional.one_hot(score.argmax(-1), ibq.size).to(z)
    q, row = (hard + soft - soft.detach()) @ ibq.codebook_KD, hard @ ibq.codebook_KD
    quant = (q - z).square().mean() + ibq.commitment * (z - row.detach()).square().mean()
    quant = quant + ibq.codebook * (row - z.detach()).square().mean()
    sharp = (score / ibq.temperature).softmax(-1)
    entropy = torch.special.entr(sharp).sum(-1).mean() - torch.special.entr(sharp.mean(0)).sum()
    return q, ibq.quant * quant + ibq.entropy * entropy


@pytest.mark.parametrize("options", [{}, {"commitment": 0.3, "codebook": 0.7, "quant": 2.0, "entropy": 0.4}])
def test_vectors_loss_and_gradients_are_those_of_the_dense_formula(options):
    ibq = IBQ(40, 6, temperature=0.5, **options)
    exact = IBQ(40, 6, temperature=0.5, **options).double()
    exact.load_state_dict(ibq.state_dict())
    z, mask = torch.randn(3, 20, 6).double(), torch.rand(3, 20) < 0.7
    low, high = z.float().requires_grad_(), z.clone().requires_grad_()
    out = ibq(low, mask)
    q, loss = dense(exact, high, mask)
    torch.testing.assert_close(out.z_BND[mask].double(), q, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.loss.double(), loss, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(z)
    ((out.z_BND * weight.float()).sum() + out.loss).backward()
    ((q * weight[mask]).sum() + loss).backward()
    torch.testing.assert_close(low.grad.double(), high.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ibq.codebook_KD.grad.double(), exact.codebook_KD.grad, atol=1e-5, rtol=1e-5)
    assert bool((ibq.codebook_KD.grad != 0).any(-1).all())
    assert len(out.codes_BNS[mask].unique()) < 40


def test_codes_are_the_largest_inner_products_and_are_read_off_rows_by_distance():
    ibq = IBQ(300, 6).eval()
    z = torch.randn(2, 500, 6)
    codes = ibq.encode(z)[..., 0]
    with torch.no_grad():
        assert torch.equal(codes, (z @ ibq.codebook_KD.T).argmax(-1))
        assert not torch.equal(codes, torch.cdist(z, ibq.codebook_KD).argmin(-1))
        every = torch.arange(300).view(1, -1, 1)
        assert torch.equal(ibq.codes_of(ibq.decode(every)), every)
        assert not torch.equal(ibq.encode(ibq.decode(every)), every)


def test_loss_in_eval_leaves_out_the_entropies():
    ibq, z = IBQ(40, 6), torch.randn(1, 20, 6)
    without = IBQ(40, 6, entropy=0.0)
    without.load_state_dict(ibq.state_dict())
    assert torch.equal(ibq.eval()(z).loss, without(z).loss)
    assert ibq(z).stats == {}
    assert set(ibq.train()(z).stats) == {"entropy", "mean_entropy"}


def test_masked_positions_do_not_count():
    ibq = IBQ(40, 6)
    z, mask = torch.randn(2, 6, 6), torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    losses, grads = [], []
    for value in (z, torch.where(mask[..., None], z, 50.0), torch.cat([z[0, :4], z[1]])[None]):
        ibq.zero_grad()
        loss = ibq(value, mask if value.shape == z.shape else None).loss
        loss.backward()
        losses.append(loss.detach())
        grads.append(ibq.codebook_KD.grad.clone())
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(grads[0], grads[1])
    torch.testing.assert_close(losses[0], losses[2])
    torch.testing.assert_close(grads[0], grads[2], atol=1e-6, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- learning


def sheet(count, seed):
    """A curved two-dimensional sheet in 16 dimensions."""
    mix = torch.randn(2, 16, generator=torch.Generator().manual_seed(99))
    return torch.sin(2 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) @ mix)[None]


class ChosenRowsAlone(IBQ):
    """The same search and losses, but the gradient goes straight through to z, past the softmax."""

    def _forward(self, z_BND, mask_BN):
        out = super()._forward(z_BND, mask_BN)
        row_BND = self._decode(out.codes_BNS)
        loss = (1 + self.commitment) * (z_BND - row_BND.detach()).square().mean()
        loss = loss + self.codebook * (row_BND - z_BND.detach()).square().mean()
        return type(out)(straight_through(z_BND, row_BND), out.codes_BNS, loss)


def error_and_usage(quantizer, steps=300):
    """Relative reconstruction error and codes in use, held out, of a linear autoencoder trained around a quantizer."""
    encoder, decoder = nn.Linear(16, 8), nn.Linear(8, 16)
    model = nn.ModuleList([encoder, quantizer, decoder])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for seed in range(steps):
        x = sheet(256, seed)
        out = quantizer(encoder(x))
        optimizer.zero_grad()
        (out.loss + (decoder(out.z_BND) - x).square().mean()).backward()
        optimizer.step()
    quantizer.eval()
    with torch.no_grad():
        x = sheet(2000, seed=10_000)
        codes = quantizer.encode(encoder(x))
        return float((decoder(quantizer.decode(codes)) - x).square().mean() / x.var()), len(codes.unique())


def test_it_learns_where_frozen_rows_or_chosen_rows_alone_do_not():
    results = {}
    for name, kind in (("ibq", IBQ), ("frozen", IBQ), ("chosen", ChosenRowsAlone)):
        torch.manual_seed(0)
        results[name] = error_and_usage(kind(256, 8).requires_grad_(name != "frozen"))
    error, usage = results["ibq"]
    assert error < 0.1
    assert usage > 40
    assert error < 0.6 * results["frozen"][0]
    assert error < 0.3 * results["chosen"][0]
    assert max(results["frozen"][1], results["chosen"][1]) < 20


# --------------------------------------------------------------------------------------------------------- memory


def peak_of_a_step(ibq, vectors):
    """Most memory, in bytes, that a training step held beyond what was there, the codebook's gradient included."""
    z = (0.1 * torch.randn(1, vectors, ibq.dim)).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = ibq(z)
        (out.loss + out.z_BND.square().sum()).backward()
    assert bool(ibq.codebook_KD.grad.isfinite().all())
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max())


@pytest.mark.parametrize(
    ("size", "dim", "vectors"),
    [(2**14, 16, 4096), pytest.param(2**18, 256, 256, marks=pytest.mark.slow)],
)
def test_a_training_step_holds_its_gradient_and_little_else(size, dim, vectors):
    ibq = IBQ(size, dim)
    beyond = peak_of_a_step(ibq, vectors) - 4 * size * dim
    assert beyond < 3 * softmax._BLOCK_BYTES + 16 * 2**20
    assert beyond < 4 * vectors * size / 2


# ------------------------------------------------------------------------------------------- compilation and export


def test_without_entropy_it_compiles_too():
    ibq = IBQ(16, 4, entropy=0.0, temperature=0.5)
    compiled = torch.compile(ibq, fullgraph=True, backend="aot_eager")
    z, mask = torch.randn(2, 9, 4), torch.rand(2, 9) < 0.8
    grads = []
    for module in (ibq, compiled):
        ibq.zero_grad()
        leaf = z.clone().requires_grad_()
        out = module(leaf, mask)
        (out.loss + out.z_BND.square().sum()).backward()
        grads.append((out.codes_BNS, out.z_BND.detach(), out.loss.detach(), leaf.grad, ibq.codebook_KD.grad.clone()))
    for eager, fast in zip(*grads, strict=True):
        torch.testing.assert_close(fast, eager)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size=1"),
        ({"dim": 0}, "dim=0"),
        ({"commitment": -1.0}, "commitment=-1.0"),
        ({"codebook": -1.0}, "codebook=-1.0"),
        ({"quant": -1.0}, "quant=-1.0"),
        ({"entropy": -0.1}, "entropy=-0.1"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        IBQ(**({"size": 8, "dim": 4} | options))
