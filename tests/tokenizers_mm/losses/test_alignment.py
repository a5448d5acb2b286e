"""Alignment of latents with a teacher: what it learns, whom it trains, grids, noise, and its configuration."""

import pytest
import torch

from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.geometry import match_grid
from tokenizers_mm.losses.alignment import Alignment, AlignmentConfig, projector
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.towers import TowerConfig

TEACHER = TowerConfig(name="lite0")
LOSSES = ["va_vae", "cosine", "negative_log_cosine", "features", "reals", "pooled"]


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(dim=6, patch_dim=8, pooled_dim=5, **options):
    torch.manual_seed(0)
    return Alignment(AlignmentConfig(teacher=TEACHER, **options), dim, patch_dim, pooled_dim)


def target_of(grid=(4, 4), batch=3, seed=1):
    return Semantics(features(batch, grid[0] * grid[1], 8, seed=seed), features(batch, 5, seed=seed + 1), grid)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_reach_latents_and_projection_and_not_the_target(loss, kind):
    alignment, z = build(loss=loss, projector=kind, projector_width=16), features(3, 16, 6).requires_grad_()
    target = target_of()
    for tensor in (target.patch_BND, target.pooled_BD):
        tensor.requires_grad_()
    value = alignment(z, (4, 4), target)
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert z.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in alignment.parameters())
    assert target.patch_BND.grad is None
    assert target.pooled_BD.grad is None


def learned(loss, *, paired):
    """Train the projection of latents that hold the features, mixed; the distance on images it has not seen."""
    torch.manual_seed(0)
    mix = features(8, 8, seed=9)
    patch = features(64, 4, 8, seed=1) + 2 * features(64, 1, 8, seed=2)  # images differ, and positions within them
    z, order = patch @ mix, torch.arange(64) if paired else torch.randperm(64)
    target = Semantics(patch[order], patch.mean(1)[order], (2, 2))
    alignment = Alignment(AlignmentConfig(teacher=TEACHER, loss=loss), 8, 8)
    with torch.no_grad():  # -log(cosine) starts from features that are roughly right
        for layer in alignment.children():
            layer.weight.copy_(torch.linalg.inv(mix).T + 0.3 * layer.weight)
    optimizer = torch.optim.Adam(alignment.parameters(), lr=0.05)
    for _ in range(60):
        value = alignment(z[:48], (2, 2), target[:48])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        return alignment(z[48:], (2, 2), target[48:]).item()


@pytest.mark.parametrize("loss", LOSSES)
def test_it_finds_the_teacher_in_the_latents_and_nothing_in_those_of_other_images(loss):
    found, control = learned(loss, paired=True), learned(loss, paired=False)
    assert found < 0.02
    assert control > 0.2


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "pooled"])
@pytest.mark.parametrize("grid", [(7, 7), (2, 2), (4, 8)])
def test_a_teacher_on_another_grid_is_interpolated(loss, grid):
    alignment, z, target = build(loss=loss), features(3, 16, 6), target_of(grid)
    matched = Semantics(match_grid(target.patch_BND, grid, (4, 4)), target.pooled_BD, (4, 4))
    torch.testing.assert_close(alignment(z, (4, 4), target), alignment(z, (4, 4), matched))


def test_margins_are_those_of_distance_matrix_and_cosine():
    z, target = features(3, 16, 6), target_of()
    plain, matrix, cosine, all_of_it = (
        build(margins=margins)(z, (4, 4), target).item() for margins in ((0, 0), (2, 0), (0, 2), (2, 2))
    )
    assert all_of_it == 0
    assert matrix + cosine == pytest.approx(plain)
    assert min(matrix, cosine) > 0.1


def test_tokens_without_a_place_align_their_mean():
    alignment, z, target = build(loss="pooled"), features(3, 10, 6), target_of()
    expected = 1 - torch.cosine_similarity(alignment.pooled(z.mean(1)), target.pooled_BD).mean()
    torch.testing.assert_close(alignment(z, (10,), target), expected)
    with pytest.raises(ValueError, match=r"\(4, 4\), wanted.*\(10,\).*loss: pooled"):
        build(loss="cosine")(z, (10,), target)


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_add_up(loss):
    alignment, z, target = build(loss=loss), features(4, 16, 6).requires_grad_(), target_of(batch=4)
    (whole,) = torch.autograd.grad(alignment(z, (4, 4), target), z)
    parts = sum(alignment(z[i : i + 2], (4, 4), target[slice(i, i + 2)]) for i in (0, 2)) / 2
    torch.testing.assert_close(torch.autograd.grad(parts, z)[0], whole)


def test_noise_is_for_a_share_of_the_training_images():
    z, target = features(400, 4, 6), Semantics(features(400, 4, 8), features(400, 5), (2, 2))
    clean = build(loss="features")(z, (2, 2), target)
    for share in (0.0, 0.5, 1.0):
        alignment = build(loss="features", noised=share)
        seen = []
        alignment.patch.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        alignment(z, (2, 2), target)
        touched = (seen[0] != z).flatten(1).any(1).float().mean().item()
        assert touched == pytest.approx(share, abs=0.08)
        torch.testing.assert_close(alignment.eval()(z, (2, 2), target), clean)


def test_autocast_changes_nothing():
    alignment, z, target = build(projector="mlp", projector_width=16), features(3, 16, 6), target_of()
    with torch.autocast("cpu", torch.bfloat16):
        found = alignment(z.bfloat16(), (4, 4), target.to(torch.bfloat16))
    rounded = Semantics(target.patch_BND.bfloat16().float(), target.pooled_BD, (4, 4))
    assert torch.equal(found, alignment(z.bfloat16().float(), (4, 4), rounded))


def test_projections():
    linear, mlp = projector(6, 8, kind="linear"), projector(6, 8, kind="mlp", width=16)
    assert [tuple(p.shape) for p in linear.parameters()] == [(8, 6)]
    assert [tuple(p.shape) for p in mlp.parameters()] == [(16, 6), (16,), (16, 16), (16,), (8, 16), (8,)]


def test_pooled_width_is_that_of_patches_unless_it_is_said():
    assert Alignment(AlignmentConfig(teacher=TEACHER, loss="reals"), 6, 8).pooled.weight.shape == (8, 6)
    assert build(loss="reals").pooled.weight.shape == (5, 6)
    assert not hasattr(build(loss="cosine"), "pooled")  # no parameter without a gradient


def test_it_is_read_from_plain_data():
    data = {"teacher": {"name": "lite0"}, "loss": "va_vae", "margins": [0.25, 0.5], "adaptive": True, "weight": 0.1}
    config = parse(AlignmentConfig, data, "alignment")
    assert (config.margins, config.adaptive, config.teacher.name) == ((0.25, 0.5), True, "lite0")
    with pytest.raises(ConfigError, match=r"alignment\.wieght.*did you mean weight"):
        parse(AlignmentConfig, {"teacher": {"name": "lite0"}, "wieght": 1}, "alignment")
    with pytest.raises(ConfigError, match=r"alignment\.teacher: missing"):
        parse(AlignmentConfig, {}, "alignment")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"max_weight": 0.0}, r"max_weight=0.0: expected"),
        ({"margins": (0.0, 3.0)}, r"margins=\(0.0, 3.0\): differences of cosines lie in \[0, 2\]"),
        ({"margins": (0.1, 0.0), "loss": "cosine"}, "loss cosine has none"),
        ({"projector_width": 0}, "projector_width=0"),
        ({"noised": 1.5}, r"noised=1.5: expected a share in \[0, 1\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AlignmentConfig(teacher=TEACHER, **options)


def test_features_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"target: features.*2 images.*3;"):
        build()(features(3, 16, 6), (4, 4), target_of(batch=2))
