"""Distances to a teacher's features: closed forms, invariances, gradients, grids, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F

from tokenizers_mm.geometry import match_grid
from tokenizers_mm.losses.distillation import (
    cosine_distance,
    feature_reconstruction,
    marginal_cosine,
    marginal_distance_matrix,
    negative_log_cosine,
    noised,
    reals,
    toklip,
)
from tokenizers_mm.semantics import Semantics

DISTANCES = {
    "marginal_cosine": marginal_cosine,
    "marginal_distance_matrix": marginal_distance_matrix,
    "cosine": cosine_distance,
    "negative_log_cosine": negative_log_cosine,
    "mse": feature_reconstruction,
    "smooth_l1": lambda x, target: feature_reconstruction(x, target, distance="smooth_l1"),
}


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(target, seed=5):
    """Vectors that resemble their targets, at other lengths."""
    return (target + 0.5 * features(*target.shape, seed=seed)) * torch.linspace(0.5, 3, target.shape[1])[:, None]


def angle(degrees):
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


# ------------------------------------------------------------------------------------------------- values


def test_known_angles():
    target = torch.tensor([[angle(0), angle(0), angle(0)]])
    x = torch.tensor([[angle(60), angle(-90), angle(0)]]) * torch.tensor([3.0, 0.1, 1.0])[:, None]
    assert cosine_distance(x, target).item() == pytest.approx((0.5 + 1 + 0) / 3)
    assert marginal_cosine(x, target, margin=0.6).item() == pytest.approx((0 + 0.4 + 0) / 3)
    ones = torch.tensor([[angle(60), angle(30)]])
    assert negative_log_cosine(ones, target[:, :2]).item() == pytest.approx(
        -(math.log(0.5) + math.log(3) / 2 - math.log(2)) / 2
    )
    # Far ones are clamped at 0.0001, near ones at 0.9999.
    assert negative_log_cosine(-target, target).item() == pytest.approx(-math.log(1e-4))
    assert negative_log_cosine(target, target).item() == pytest.approx(-math.log(0.9999), abs=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_distance_matrix_against_loops_over_pairs(margin):
    x, target = features(3, 5, 4), features(3, 5, 7, seed=1)  # the widths differ
    total = 0.0
    for image in range(3):
        a, b = x[image].tolist(), target[image].tolist()
        for i in range(5):
            for j in range(5):
                total += max(0.0, abs(cosine(a[i], a[j]) - cosine(b[i], b[j])) - margin)
    assert marginal_distance_matrix(x, target, margin=margin).item() == pytest.approx(total / 75, rel=1e-5)


def test_the_distance_matrix_sees_relations_and_not_axes():
    x = features(2, 6, 8)
    rotation = torch.linalg.qr(features(8, 8, seed=3))[0]
    assert marginal_distance_matrix(x @ rotation, x).item() < 1e-6
    assert cosine_distance(x @ rotation, x).item() > 0.5
    assert marginal_distance_matrix(x[:, [1, 0, 2, 3, 4, 5]], x).item() > 0.05


def test_feature_reconstruction_against_its_formula():
    x, target = 3 * features(2, 3, 4), features(2, 3, 4, seed=1)
    difference = [a - b for a, b in zip(x.flatten().tolist(), target.flatten().tolist(), strict=True)]
    huber = [0.5 * d * d if abs(d) < 1 else abs(d) - 0.5 for d in difference]
    assert feature_reconstruction(x, target).item() == pytest.approx(sum(d * d for d in difference) / 24, rel=1e-5)
    assert feature_reconstruction(x, target, distance="smooth_l1").item() == pytest.approx(sum(huber) / 24, rel=1e-5)
    assert feature_reconstruction(x, target, distance="cosine") == cosine_distance(x, target)


def test_reals_is_the_mean_of_patches_and_image():
    patch, pooled = features(2, 4, 3), features(2, 5, seed=1)
    target = Semantics(features(2, 4, 3, seed=2), features(2, 5, seed=3), (2, 2))
    parts = [
        0.9 * (1 - F.cosine_similarity(a, b, dim=-1).mean()) + 0.1 * F.smooth_l1_loss(a, b)
        for a, b in ((patch, target.patch_BND), (pooled, target.pooled_BD))
    ]
    torch.testing.assert_close(reals(patch, pooled, target), sum(parts) / 2)


def test_toklip_weighs_unit_pooled_vectors_and_plain_patches():
    student = Semantics(features(2, 4, 3), features(2, 5, seed=1), (2, 2))
    teacher = Semantics(features(2, 16, 3, seed=2), features(2, 5, seed=3), (4, 4))
    pooled = F.mse_loss(F.normalize(student.pooled_BD), F.normalize(teacher.pooled_BD))
    patch = F.mse_loss(student.patch_BND, match_grid(teacher.patch_BND, (4, 4), (2, 2)))
    torch.testing.assert_close(toklip(student, teacher), 1000 * pooled + 10 * patch)
    torch.testing.assert_close(toklip(student, teacher, patch=0), 1000 * pooled)
    torch.testing.assert_close(toklip(student, teacher, pooled=0, patch=1), patch)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_mean_over_images_that_knows_no_batch(name):
    target = features(4, 6, 8)
    x, distance = near(target), DISTANCES[name]
    whole, parts = distance(x, target), [distance(x[i : i + 2], target[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, whole)
    # Nor the number of positions: an image of twice the height, repeated, has the same distance.
    torch.testing.assert_close(distance(x.repeat(1, 2, 1), target.repeat(1, 2, 1)), whole)


# ---------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_reach_the_features_only_and_lead_to_the_target(name):
    target = features(2, 6, 8).requires_grad_()
    x = near(target.detach()).requires_grad_()
    before = DISTANCES[name](x, target)
    before.backward()
    assert target.grad is None
    after = DISTANCES[name](x.detach() - 0.1 * x.grad / x.grad.norm(), target)
    assert after < before


def test_nothing_pulls_inside_the_margins():
    target = features(2, 6, 8)
    for distance, margin in ((marginal_cosine, 0.5), (marginal_distance_matrix, 0.5)):
        x = (target + 0.2 * features(2, 6, 8, seed=1)).requires_grad_()
        distance(x, target, margin=margin).backward()
        assert x.grad.abs().max() == 0
        x.grad = None
        distance(x, target).backward()
        assert x.grad.abs().max() > 0


def test_the_published_clamp_leaves_opposite_vectors_alone():
    target = features(1, 4, 8)
    x = (-target).requires_grad_()
    negative_log_cosine(x, target).backward()
    assert x.grad.abs().max() == 0
    tilted = (-target + 0.1 * features(1, 4, 8, seed=1)).requires_grad_()
    cosine_distance(tilted, target).backward()
    assert tilted.grad.abs().max() > 0


@pytest.mark.parametrize("name", DISTANCES)
def test_vectors_of_zeros_give_finite_gradients(name):
    target = features(2, 4, 8)
    target[0, 0] = 0
    x = near(target)
    x[0, 1] = 0
    x.requires_grad_()
    loss = DISTANCES[name](x, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", DISTANCES)
def test_autocast_and_half_precision_change_no_arithmetic(name):
    target = features(2, 6, 8).bfloat16()
    x = near(target).bfloat16()
    expected = DISTANCES[name](x.float(), target.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = DISTANCES[name](x, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# -------------------------------------------------------------------------------------------------- grids


def test_shrinking_averages_areas():
    x = torch.arange(16.0).view(1, 16, 1)
    assert match_grid(x, (4, 4), (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert match_grid(x, (4, 4), (1, 1)).item() == 7.5
    assert match_grid(x, (4, 4), (4, 2)).flatten().tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]


def test_growing_is_bilinear_between_centres():
    x = torch.tensor([0.0, 4.0]).view(1, 2, 1)
    assert match_grid(x, (1, 2), (1, 4)).flatten().tolist() == [0, 1, 3, 4]
    assert match_grid(x, (2, 1), (4, 1)).flatten().tolist() == [0, 1, 3, 4]
    # One side shrinks while the other grows.
    both = torch.tensor([[0.0, 4.0], [2.0, 6.0]]).view(1, 4, 1)
    assert match_grid(both, (2, 2), (1, 4)).flatten().tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize("target_grid", [(7, 7), (3, 5), (16, 16), (4, 9)])
def test_any_grid_keeps_constants_channels_and_gradients(target_grid):
    channel = torch.tensor([1.0, -2.0, 3.0])
    x = channel.expand(2, 35, 3).clone().requires_grad_()
    out = match_grid(x, (5, 7), target_grid)
    torch.testing.assert_close(out, channel.expand(2, math.prod(target_grid), 3))
    out.sum().backward()
    assert (x.grad > 0).all()


def test_the_same_grid_is_left_alone():
    x = features(1, 6, 2)
    assert match_grid(x, (2, 3), (2, 3)) is x
    assert match_grid(x, (6,), (6,)) is x


# -------------------------------------------------------------------------------------------------- noise


def test_noise_moves_along_the_path_and_has_the_size_of_the_latents():
    z, noise = 7 * features(3, 200, 16) + 2, features(3, 200, 16, seed=1)
    assert torch.equal(noised(z, noise, torch.ones(3)), z)
    pure = noised(z, noise, torch.zeros(3))
    torch.testing.assert_close(pure.square().mean((1, 2)), z.square().mean((1, 2)), rtol=0.05, atol=0)
    torch.testing.assert_close(noised(z, noise, torch.full((3,), 0.25)), 0.25 * z + 0.75 * pure)
    torch.testing.assert_close(noised(z[1:], noise[1:], torch.zeros(2)), pure[1:])  # whatever else is in the batch


def test_noise_scales_with_the_latents_and_passes_their_gradient():
    z, noise, t = features(2, 6, 4), features(2, 6, 4, seed=1), torch.tensor([0.3, 0.8])
    torch.testing.assert_close(noised(100 * z, noise, t), 100 * noised(z, noise, t))
    z.requires_grad_()
    noised(z, noise, t).sum().backward()
    torch.testing.assert_close(z.grad, t[:, None, None].expand(2, 6, 4))


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cosine_distance(torch.zeros(2, 4, 3), torch.zeros(2, 4, 5)),
            r"\(2, 4, 3\).*\(2, 4, 5\): they must have",
        ),
        (lambda: marginal_cosine(torch.zeros(2, 4, 3), torch.zeros(2, 1, 3)), "they must have one shape"),
        (lambda: feature_reconstruction(torch.zeros(2, 3), torch.zeros(1, 3)), "they must have one shape"),
        (
            lambda: feature_reconstruction(torch.zeros(2, 3), torch.zeros(2, 3), distance="l3"),
            "distance='l3': expected",
        ),
        (lambda: marginal_distance_matrix(torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)), "positions do not pair"),
        (lambda: match_grid(torch.zeros(1, 6, 2), (2, 2), (3, 3)), r"\(1, 6, 2\) do not fill the grid \(2, 2\)"),
        (lambda: match_grid(torch.zeros(1, 4, 2), (2, 2), (4,)), r"positions of a sequence do not.*loss: pooled"),
        (lambda: match_grid(torch.zeros(1, 5, 2), (2, 2), ((1, 1), (2, 2))), "only .rows, columns"),
        (lambda: match_grid(torch.zeros(1, 4, 2), (4,), (8,)), r"grid is \(4,\), wanted is \(8,\)"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
