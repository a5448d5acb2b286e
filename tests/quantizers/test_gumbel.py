"""Gumbel softmax: torch's own function on the same noise; draws follow the softmax; no N x K without gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from quantizers import gumbel
from quantizers.gumbel import Gumbel


def by_definition(module, z, mask):
    """Vectors, codes and loss of the real positions, from torch's function on all of them."""
    logits = F.linear(z, module.to_logits.weight, module.to_logits.bias)
    choice = F.gumbel_softmax(logits.flatten(0, 1), tau=module.temperature, hard=module.straight_through)
    choice, q = choice.view_as(logits)[mask], logits[mask].softmax(-1)
    loss = module.kl * (q * (q * module.size + 1e-10).log()).sum(-1).mean()
    return choice @ module.codebook_KD, choice.argmax(-1), loss


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.3, "kl": 0.2}, {"in_dim": 9, "straight_through": False, "temperature": 2.0, "kl": 0.5}],
)
def test_a_training_step_is_that_of_torchs_gumbel_softmax(options):
    module = Gumbel(40, 6, **options)
    mask = torch.rand(3, 20) < 0.7
    z = torch.where(mask[..., None], torch.randn(3, 20, module.in_dim), 0.0)
    weight = torch.randn(int(mask.sum()), 6)
    found = []
    for step in (lambda leaf: module(leaf, mask), lambda leaf: by_definition(module, leaf, mask)):
        module.zero_grad()
        leaf = z.clone().requires_grad_()
        torch.manual_seed(1)
        out = step(leaf)
        q, codes, loss = out if isinstance(out, tuple) else (out.z_BND[mask], out.codes_BNS[mask][:, 0], out.loss)
        ((q * weight).sum() + 100 * loss).backward()
        found.append([q.detach(), codes, loss.detach(), leaf.grad, *(p.grad.clone() for p in module.parameters())])
    for ours, definition in zip(*found, strict=True):
        torch.testing.assert_close(ours, definition, rtol=1e-4, atol=1e-5)
    if module.straight_through:
        assert torch.equal(found[0][0], module.decode(found[0][1].view(1, -1, 1))[0].detach())


def test_training_draws_codes_from_the_softmax_and_eval_takes_the_largest():
    module = Gumbel(6, 3, temperature=0.2)
    z = torch.randn(1, 1, 3)
    share = module.to_logits(z).softmax(-1).flatten().detach()
    codes = module(z.expand(1, 50_000, 3)).codes_BNS
    found = codes.flatten().bincount(minlength=6) / 50_000
    assert float((found - share).abs().max()) < 0.01  # more than four standard deviations
    assert float(share.max() - share.min()) > 0.1
    module.eval()
    assert bool((module(z.expand(1, 99, 3)).codes_BNS == share.argmax()).all())


def test_the_temperature_shapes_the_gradient_and_not_the_draw():
    module, z = Gumbel(40, 6), torch.randn(1, 30, 6)
    steps = []
    for temperature in (1.0, 0.1):
        module.temperature = temperature
        module.zero_grad()
        torch.manual_seed(2)
        out = module(z)
        out.z_BND.square().sum().backward()
        steps.append((out.codes_BNS, module.to_logits.weight.grad.clone()))
    assert torch.equal(steps[0][0], steps[1][0])
    assert not torch.allclose(steps[0][1], steps[1][1], rtol=0.1)
    assert module.options()["temperature"] == 0.1


def test_codes_are_the_largest_logits_and_are_read_off_rows_by_distance():
    module = Gumbel(300, 6, in_dim=5).eval()
    nn.init.normal_(module.to_logits.bias)
    z = torch.randn(2, 500, 5)
    with torch.no_grad():
        assert torch.equal(module.encode(z)[..., 0], module.to_logits(z).argmax(-1))
        without = F.linear(z, module.to_logits.weight).argmax(-1)
    assert not torch.equal(module.encode(z)[..., 0], without), "the bias decides too"
    every = torch.arange(300).view(1, -1, 1)
    assert torch.equal(module.codes_of(module.decode(every)), every)


@pytest.mark.parametrize("straight_through", [True, False])
def test_eval_gives_rows_without_noise_and_still_a_gradient(straight_through):
    module = Gumbel(40, 6, straight_through=straight_through).eval()
    z = torch.randn(2, 30, 6, requires_grad=True)
    out = module(z)
    assert torch.equal(out.z_BND, module.decode(module.encode(z)))
    out.z_BND.sum().backward()
    assert bool((z.grad != 0).all())
    assert bool((module.to_logits.weight.grad != 0).any())


def test_blocks_change_nothing(monkeypatch):
    module, z = Gumbel(40, 6), torch.randn(2, 50, 6)
    for training in (True, False):
        module.train(training)
        outs = []
        for block in (gumbel._BLOCK_BYTES, 4 * 40 * 7):
            monkeypatch.setattr(gumbel, "_BLOCK_BYTES", block)
            torch.manual_seed(3)
            with torch.no_grad():
                outs.append(module(z))
        torch.testing.assert_close(outs[0].loss, outs[1].loss)
        if not training:  # other blocks draw other noise
            torch.testing.assert_close(outs[0].z_BND, outs[1].z_BND)
        assert torch.equal(outs[1].z_BND, module.decode(outs[1].codes_BNS))


def most_held(step):
    """Most memory, in bytes, that a call held beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max())


def test_without_gradients_there_is_no_table_of_all_logits():
    module, z = Gumbel(8192, 8).eval(), torch.randn(1, 8192, 8)
    table = 4 * 8192 * 8192

    def forward():
        with torch.no_grad():
            module(z)

    assert most_held(lambda: module.encode(z)) < 0.15 * table
    assert most_held(forward) < 0.7 * table  # a few tables of one block, an eighth of the whole each


def test_the_divergence_keeps_codes_in_use():
    """The same data and the same start: codes in use, and their evenness, with a weak and with a strong weight."""
    z = torch.randn(1, 512, 4, generator=torch.Generator().manual_seed(5)) * 3
    entropies = []
    for kl in (0.0, 1.0):
        torch.manual_seed(0)
        module, out_of = Gumbel(32, 4, kl=kl), nn.Linear(4, 4)
        optimizer = torch.optim.Adam([*module.parameters(), *out_of.parameters()], 1e-2)
        for _ in range(150):
            out = module(z)
            optimizer.zero_grad()
            ((out_of(out.z_BND) - z).square().mean() + out.loss).backward()
            optimizer.step()
        entropies.append(float(torch.special.entr(module.to_logits(z).softmax(-1).detach()).sum(-1).mean()))
    assert entropies[1] > entropies[0] + 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size=1"),
        ({"dim": 0}, "dim=0"),
        ({"in_dim": 0}, "in_dim=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"kl": -0.1}, "kl=-0.1"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Gumbel(**({"size": 8, "dim": 4} | options))
