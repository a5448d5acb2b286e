"""Cut graphs: the same values and gradients as one graph, in the precision of one graph, and nothing else touched."""

import torch
from torch import nn

from tokenizers_mm.training.objective.cut import Scale, cut


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(1)).double()


def test_gradients_are_those_of_one_graph():
    before, judge = nn.Conv2d(3, 3, 1).double(), net()
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    judge(image)

    def gradients(attach):
        for module in (before, judge):
            module.zero_grad()
        x = before(image)
        (0.3 * attach(x) + x.square().mean()).backward()
        return [p.grad.clone() for p in (*before.parameters(), *judge.parameters())]

    whole = gradients(lambda x: judge(x).mean())
    parted = gradients(lambda x: cut(x, lambda y: judge(y).mean(), trained=judge).term)
    for one, other in zip(whole, parted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)  # a term is float32


def test_a_frozen_judge_gets_no_gradient_and_the_term_says_the_value():
    judge, x = net(), torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    part = cut(x, lambda y: judge(y).mean())
    part.term.backward()
    assert all(p.grad is None for p in judge.parameters())
    assert torch.allclose(part.term.double(), judge(x).mean())
    torch.testing.assert_close(x.grad, part.gradient)


def test_the_scale_of_the_sum_is_known_afterwards():
    x, scale = torch.ones(3, requires_grad=True), Scale()
    part = cut(x, lambda y: y.square().sum(), scale=scale)
    (part.term / 4).backward()
    assert float(scale.value) == 0.25
    assert torch.equal(x.grad, torch.full((3,), 0.5))


def test_gradients_too_small_for_half_precision_survive_it():
    x = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    part = cut(x, lambda y: y.half().float().sum() * 1e-8)
    assert torch.allclose(part.gradient, torch.full_like(x, 1e-8))
    plain = x.detach().requires_grad_()
    (plain.half().float().sum() * 1e-8).backward()
    assert float(plain.grad.max()) == 0.0


def test_a_loss_that_ignores_its_input_has_gradient_zero():
    x, weight = torch.ones(3, requires_grad=True), nn.Linear(1, 1)
    part = cut(x, lambda _: weight.weight.sum(), trained=weight)
    part.term.backward()
    assert torch.equal(part.gradient, torch.zeros(3))
    assert float(weight.weight.grad) == 1.0
