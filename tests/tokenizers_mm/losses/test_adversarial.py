"""Adversarial losses against closed forms; a discriminator whose steps do not depend on how their batch is split."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.losses.adversarial import (
    adaptive_weight,
    consistency_penalty,
    discriminator_loss,
    divergence,
    generator_loss,
    lecam_penalty,
    r1_penalty,
)
from tokenizers_mm.losses.discriminator_training import AdversarialConfig, Adversary
from tokenizers_mm.nets.discriminators import FeatureConfig, PatchConfig, build_discriminator

KINDS: tuple[Any, ...] = ("hinge", "non_saturating", "vanilla")
PATCH = PatchConfig(channels=8, layers=2)
EVERYTHING: tuple[Any, ...] = ("color", "translation", "cutout")


def adversary(discriminator: Any = PATCH, **options: Any) -> Adversary:
    torch.manual_seed(0)
    config = AdversarialConfig(discriminator=discriminator, **options)
    return Adversary(build_discriminator(config.discriminator, random_init=True), config)


def images(count: int, seed: int = 1, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def total(terms: Any) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


# ------------------------------------------------------------------------------------------------ losses of logits


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_the_closed_form(kind: Any) -> None:
    real, fake = torch.tensor([[-0.5, 2.0], [0.3, -3.0]]), torch.tensor([[0.5, -2.0], [1.3, -0.1]])
    real.requires_grad_(), fake.requires_grad_()
    discriminator_loss([real], [fake], kind).backward()
    if kind == "hinge":
        expected = -(real < 1).float() / 8, (fake > -1).float() / 8
    else:
        expected = -torch.sigmoid(-real) / 8, torch.sigmoid(fake) / 8
    torch.testing.assert_close((real.grad, fake.grad), expected)
    (gradient,) = torch.autograd.grad(generator_loss([fake], kind), fake)
    torch.testing.assert_close(
        gradient, -torch.sigmoid(-fake) / 4 if kind == "non_saturating" else torch.full_like(fake, -0.25)
    )


def test_values_by_hand() -> None:
    real, fake = [torch.tensor([2.0, 0.0])], [torch.tensor([-2.0, 1.0])]
    assert float(discriminator_loss(real, fake, "hinge")) == 0.5 * (0.5 + 1.0)
    both = [math.log(1 + math.exp(x)) for x in (-2, 0, -2, 1)]
    assert float(discriminator_loss(real, fake, "vanilla")) == pytest.approx(sum(both) / 4)
    assert float(generator_loss(fake, "hinge")) == float(generator_loss(fake, "vanilla")) == 0.5
    assert float(generator_loss(fake, "non_saturating")) == pytest.approx(
        (math.log(1 + math.e**2) + math.log(1 + 1 / math.e)) / 2
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_does_not_depend_on_size_and_heads_count_alike(kind: Any) -> None:
    small, large = torch.tensor([0.3, -0.8]).view(2, 1, 1), torch.tensor([1.5, 0.1]).view(2, 1, 1).expand(2, 8, 8)
    one = generator_loss([small], kind), discriminator_loss([small], [-small], kind)
    tiled = generator_loss([small.expand(2, 16, 16)], kind), discriminator_loss([small.expand(2, 9, 9)], [-small], kind)
    torch.testing.assert_close(one, tiled)
    heads = (generator_loss([small], kind) + generator_loss([large], kind)) / 2
    torch.testing.assert_close(generator_loss([small, large], kind), heads)


def test_lecam_by_hand() -> None:
    real, fake = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[0.5, -1.0]], requires_grad=True)
    loss = lecam_penalty([real], [fake], torch.tensor(0.25), torch.tensor(-0.5))
    loss.backward()
    # real above the fakes' average by 1.5; fake below the reals' average by 1.25; the others have crossed already
    assert float(loss.detach()) == pytest.approx((1.5**2 + 1.25**2) / 2)
    torch.testing.assert_close(real.grad, torch.tensor([[1.5, 0.0]]))
    torch.testing.assert_close(fake.grad, torch.tensor([[0.0, -1.25]]))


class Linear(nn.Module):
    """One logit for every k x k patch, linear in its pixels: R1 is known."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, k, stride=k)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [self.conv(image_BCHW)[:, 0]]


@pytest.mark.parametrize(("k", "size"), [(8, 8), (8, 16), (8, 64), (4, 8)])
def test_r1_of_linear_logits_at_any_size(k: int, size: int) -> None:
    """The paper's half squared norm for one logit; the mean over patches where there are many."""
    net, image = Linear(k), images(2, size=size).requires_grad_()
    loss = r1_penalty(net(image), image)
    weight = net.conv.weight
    torch.testing.assert_close(loss, 0.5 * weight.square().sum())
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient, weight)


def test_r1_of_a_discriminator_image_by_image() -> None:
    net, image = adversary().discriminator, images(3)
    squares = []
    for x in image:
        leaf = x[None].clone().requires_grad_()
        logit = net(leaf)[0]
        (gradient,) = torch.autograd.grad(logit.mean() * math.sqrt(logit.numel()), leaf)
        squares.append(float(gradient.square().sum()))
    leaf = image.clone().requires_grad_()
    assert float(r1_penalty(net(leaf), leaf).detach()) == pytest.approx(sum(squares) / 6, rel=1e-5)
    two = r1_penalty([net(leaf)[0], 3 * net(leaf)[0]], leaf)  # the mean of both heads is twice the first
    assert float(two.detach()) == pytest.approx(4 * sum(squares) / 6, rel=1e-5)


def test_consistency_by_hand() -> None:
    a, b = [torch.tensor([1.0, 2.0]), torch.tensor([0.0])], [torch.tensor([1.0, 4.0]), torch.tensor([3.0])]
    assert float(consistency_penalty(a, b)) == (2.0 + 9.0) / 2


# ------------------------------------------------------------------------------------------------- adaptive weight


def test_adaptive_weight_makes_gradients_equally_long() -> None:
    reference, grad = images(2, 3), images(2, 4) * 1e-2
    weight = adaptive_weight(reference, grad, 1e4)
    torch.testing.assert_close((weight * grad).norm(), reference.norm())
    assert not weight.requires_grad
    torch.testing.assert_close(adaptive_weight(reference * 1e-6, grad * 1e-6, 1e4), weight)
    vqgan = reference.norm() / (grad.norm() + 1e-4)
    torch.testing.assert_close(weight, vqgan, rtol=1e-3, atol=0)


def test_adaptive_weight_stays_finite() -> None:
    ones, zeros = torch.ones(4), torch.zeros(4)
    assert float(adaptive_weight(ones, zeros, 1e4)) == 0.0
    assert float(adaptive_weight(zeros, zeros, 1e4)) == 0.0
    assert float(adaptive_weight(zeros, ones, 1e4)) == 0.0
    assert float(adaptive_weight(ones, ones * 1e-15, 1e4)) == 1e4
    assert float(adaptive_weight(ones * 1e15, ones * 1e-15, 1e4)) == 1e4
    assert float(adaptive_weight(ones * 5, ones, 2.0)) == 2.0
    assert math.isnan(float(adaptive_weight(ones, ones * math.nan, 1e4)))  # for the loop to stop at


# ------------------------------------------------------------------------------------------------------- Adversary


@pytest.mark.parametrize(
    "discriminator",
    [
        PATCH,
        PatchConfig(channels=8, layers=2, spectral=True),
        PatchConfig(channels=8, layers=2, norm="batch"),
        FeatureConfig(network="timm:test_efficientnet", stages=(1, 3), channels=8),
    ],
)
def test_the_tokenizer_term_reaches_the_image_alone(discriminator: Any) -> None:
    game = adversary(discriminator, loss="non_saturating").train()
    fake = images(2).requires_grad_()
    before = copy.deepcopy(game.state_dict())
    loss = game.generator_loss(fake)
    loss.backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert gradients(game) == []
    assert all(torch.equal(value, before[name]) for name, value in game.state_dict().items())
    torch.testing.assert_close(loss, generator_loss(game.discriminator(fake), "non_saturating"))


def test_the_discriminator_terms_reach_the_discriminator_alone() -> None:
    game = adversary(lecam=0.1, r1=1.0, consistency=1.0)
    game.known.fill_(True)
    real, fake = images(2).requires_grad_(), images(2, 2).requires_grad_()
    terms, stats, _ = game(real, fake)
    assert list(terms) == ["discriminator", "lecam", "r1", "consistency"]
    for term in terms.values():
        game.zero_grad()
        term.backward(retain_graph=True)
        assert sum(float(g.abs().sum()) for g in gradients(game)) > 0
    assert real.grad is None
    assert fake.grad is None
    assert not any(value.requires_grad for value in stats.values())


def test_terms_are_the_weighted_penalties() -> None:
    game = adversary(lecam=0.3, r1=2.0, r1_every=4, loss="vanilla")
    game.averages.copy_(torch.tensor([0.4, -0.2]))
    game.known.fill_(True)
    real, fake = images(2), images(2, 2)
    terms, stats, _ = game(real, fake)
    leaf = real.clone().requires_grad_()
    logits = game.discriminator(leaf), game.discriminator(fake)
    torch.testing.assert_close(terms["discriminator"], discriminator_loss(*logits, "vanilla"))
    torch.testing.assert_close(terms["lecam"], 0.3 * lecam_penalty(*logits, torch.tensor(0.4), torch.tensor(-0.2)))
    torch.testing.assert_close(terms["r1"], 2.0 * 4 * r1_penalty(logits[0], leaf))
    torch.testing.assert_close(stats["logits_real"], logits[0][0].mean())
    torch.testing.assert_close(stats["logits_fake"], logits[1][0].mean())


def test_r1_is_due_now_and_then_and_its_mean_does_not_depend_on_that() -> None:
    often, rarely = adversary(r1=1.0, r1_every=1), adversary(r1=1.0, r1_every=4)
    found: list[float] = []
    for step in range(8):
        rarely.begin_step(step)
        terms = rarely(images(2), images(2, 2)).terms
        assert ("r1" in terms) == (step in (0, 4))
        found.append(float(terms["r1"].detach()) if "r1" in terms else 0.0)
    every = float(often(images(2), images(2, 2)).terms["r1"].detach())
    assert sum(found) / 8 == pytest.approx(every, rel=1e-5)
    assert "r1" not in adversary()(images(2), images(2, 2)).terms


def test_r1_passes_through_attention() -> None:
    """The fused kernels have no second derivative; the penalty must have one nevertheless."""
    game = adversary(FeatureConfig(network="timm:test_vit", stages=(2,), channels=8), r1=1.0)
    game(images(1), images(1, 2)).terms["r1"].backward()
    assert sum(float(g.abs().sum()) for g in gradients(game)) > 0


@pytest.mark.parametrize("spectral", [False, True])
def test_accumulation_equals_one_large_batch(spectral: bool) -> None:
    options: dict[str, Any] = {"lecam": 0.5, "r1": 1.0, "r1_every": 2}
    net = PatchConfig(channels=8, layers=2, spectral=spectral)
    split = _gradients_of_two_steps(adversary(net, **options), parts=4)
    whole = _gradients_of_two_steps(adversary(net, **options), parts=1)
    assert _distance(split, whole) < 1e-5
    mixed = PatchConfig(channels=8, layers=2, norm="batch")  # the negative control
    split, whole = (_gradients_of_two_steps(adversary(mixed, **options), parts) for parts in (4, 1))
    assert _distance(split, whole) > 0.01


def mean(stats: list[Any]) -> dict[str, Tensor]:
    """Statistics of a step: their means over its micro-batches."""
    return {name: torch.stack([one[name] for one in stats]).mean() for name in stats[0]}


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Length of the difference over that of b."""
    one, other = (torch.cat([x.flatten() for x in xs]) for xs in (a, b))
    return float((one - other).norm() / other.norm())


def _gradients_of_two_steps(game: Adversary, parts: int) -> list[Tensor]:
    """Gradients of the second step, whose LeCam averages and spectral norms come from the first."""
    optimizer = torch.optim.SGD(game.parameters(), lr=0.1)
    for step in (0, 2):
        game.begin_step(step)
        game.zero_grad()
        stats = []
        for real, fake in zip(images(8, step).chunk(parts), images(8, 9 + step).chunk(parts), strict=True):
            losses = game(real, fake)
            stats.append(losses.stats)
            (total(losses.terms) / parts).backward()
        found = gradients(game)
        optimizer.step()
        game.end_step(mean(stats))
    return [*found, game.averages]


def test_lecam_averages_move_once_per_step() -> None:
    game = adversary(lecam=1.0, lecam_decay=0.75).train()
    first, second = [game(images(2, seed), images(2, seed + 10)) for seed in (1, 2)]
    assert float(first.terms["lecam"]) == float(second.terms["lecam"]) == 0.0  # nothing is known yet
    assert game.averages.tolist() == [0.0, 0.0]
    game.end_step(mean([first.stats, second.stats]))
    real, fake = ((first.stats[name] + second.stats[name]) / 2 for name in ("logits_real", "logits_fake"))
    torch.testing.assert_close(game.averages, torch.stack([real, fake]))  # the first step is not averaged with zeros
    third = game(images(2, 3), images(2, 13))
    assert float(third.terms["lecam"].detach()) > 0
    game.end_step(third.stats)
    torch.testing.assert_close(game.averages[0], 0.75 * real + 0.25 * third.stats["logits_real"])
    kept = game.averages.clone()
    game(images(2), images(2, 2))
    assert torch.equal(game.averages, kept)  # a pass alone moves nothing


def test_everything_that_a_resumed_run_needs_is_in_the_state() -> None:
    game = adversary(PatchConfig(channels=8, layers=2, spectral=True), lecam=1.0)
    for seed in (1, 2):
        game.end_step(game(images(2, seed), images(2, seed + 10)).stats)
    torch.manual_seed(9)
    other = Adversary(build_discriminator(game.config.discriminator), game.config)
    other.load_state_dict(game.state_dict())
    losses = [a(images(2, 3), images(2, 13)) for a in (game, other)]
    assert torch.equal(*(total(one.terms) for one in losses))
    game.end_step(losses[0].stats), other.end_step(losses[1].stats)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in game.state_dict().items())


def test_pairs_are_augmented_alike_and_reproducibly() -> None:
    game = adversary(augment=EVERYTHING)
    stats = game(images(4), images(4)).stats
    assert float(stats["logits_real"]) == float(stats["logits_fake"])  # only equal changes keep equal images equal
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    losses = [float(game.generator_loss(images(4), seed)) for seed in seeds]
    assert losses[0] == losses[1] != losses[2]
    plain = adversary()
    assert float(plain.generator_loss(images(4))) not in losses
    again = [total(game(images(4), images(4, 2), torch.Generator().manual_seed(seed)).terms) for seed in (0, 0, 1)]
    assert float(again[0]) == float(again[1]) != float(again[2])


def test_consistency_compares_with_augmented_images() -> None:
    game = adversary(consistency=4.0)
    assert float(game(images(4), images(4, 2)).terms["consistency"].detach()) > 0
    for p in game.parameters():
        p.data.zero_()
    assert float(game(images(4), images(4, 2)).terms["consistency"].detach()) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_game_moves_the_fakes_to_the_originals(kind: Any) -> None:
    """Originals are dark grey, fakes start light; nothing but the adversarial term tells them where to go."""
    game = adversary(PatchConfig(channels=8, layers=1, norm="none"), loss=kind)
    level = torch.tensor(0.6, requires_grad=True)
    optimizers = torch.optim.Adam([level], lr=0.03), torch.optim.Adam(game.parameters(), lr=3e-3, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        noise = 0.1 * torch.randn(2, 4, 3, 8, 8, generator=generator)
        fake = level + noise[0]
        (level.grad,) = torch.autograd.grad(game.generator_loss(fake), level)
        optimizers[0].step()
        optimizers[1].zero_grad()
        losses = game(noise[1] - 0.4, fake)
        total(losses.terms).backward()
        optimizers[1].step()
        game.end_step(losses.stats)
    assert abs(float(level) + 0.4) < 0.35


def test_statistics_show_a_collapse() -> None:
    game = adversary()
    blind = game(images(4), images(4)).stats
    assert float(blind["discriminator_accuracy"]) == 0.5
    head: Any = game.discriminator.main[-1]  # type: ignore[index]
    stats = {}
    for gain in (1.0, 1e6):
        head.weight.data *= gain
        stats[gain] = {name: float(value) for name, value in game(images(4), images(4, 2)).stats.items()}
    assert game.divergence(stats[1.0]) is None
    message = game.divergence(stats[1e6])
    assert message is not None
    assert message.startswith("discriminator: the largest |logit| is")
    assert "beyond 1000; lower its learning_rate" in message
    assert "is nan" in str(divergence({"discriminator_largest": math.nan}, 1e3))
    assert divergence({"discriminator_largest": 5.0}, 4.0) is not None


def test_accuracy_counts_both_sides() -> None:
    class First(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [image[:, 0, 0]]

    game = Adversary(First(), AdversarialConfig())
    real, fake = torch.ones(1, 3, 4, 4), -torch.ones(1, 3, 4, 4)
    fake[0, 0, 0, 0] = 7.0
    stats = game(real, fake).stats
    assert float(stats["discriminator_accuracy"]) == (1.0 + 0.75) / 2
    assert float(stats["discriminator_largest"]) == 7.0


def test_when_it_trains_and_when_it_is_felt() -> None:
    game = adversary(start=100, warmup=30)
    assert [game.trains(step) for step in (0, 69, 70, 100)] == [False, False, True, True]
    assert [game.active(step) for step in (0, 70, 99, 100)] == [False, False, False, True]
    assert adversary().trains(0)
    assert adversary().active(0)


def test_logits_of_low_precision_are_judged_in_float32() -> None:
    logit = torch.tensor([300.0, 301.0], dtype=torch.bfloat16)
    assert lecam_penalty([logit], [logit], torch.tensor(0.0), torch.tensor(0.0)).dtype == torch.float32
    assert F.softplus(-logit.float()).mean() == generator_loss([logit], "non_saturating")
    with torch.autocast("cpu", torch.bfloat16):
        terms = adversary(r1=1.0, lecam=1.0)(images(2), images(2, 2)).terms
    assert all(term.dtype == torch.float32 for term in terms.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0: expected at least 0"),
        ({"lecam": math.nan}, "lecam=nan: expected at least 0"),
        ({"max_weight": 0.0}, "max_weight=0.0: expected a positive number"),
        ({"r1_every": 0}, "r1_every=0: expected a positive number"),
        ({"lecam_decay": 1.0}, r"lecam_decay=1.0: expected decays in \[0, 1\)"),
        ({"warmup": 5}, "warmup=5: there are only start=0 steps before the start"),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialConfig(**options)


def test_configs_come_from_text() -> None:
    config = parse(
        AdversarialConfig, {"loss": "vanilla", "augment": ["color"], "discriminator": {"kind": "patch"}}, "r"
    )
    assert config == AdversarialConfig(loss="vanilla", augment=("color",))
    make: Callable[[Any], Any] = lambda data: parse(AdversarialConfig, data, "recipe")  # noqa: E731
    with pytest.raises(ConfigError, match=r"recipe.loss = 'wasserstein'"):
        make({"loss": "wasserstein"})
    with pytest.raises(ConfigError, match=r"recipe.augment"):
        make({"augment": ["colour"]})
    with pytest.raises(ConfigError, match=r"recipe.start_at = 3: unknown.*start"):
        make({"start_at": 3})
