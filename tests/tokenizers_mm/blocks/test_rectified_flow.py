"""The time convention, training times and what a model that predicts data means."""

import pytest
import torch

from tokenizers_mm.blocks.rectified_flow import (
    TIME_DENSITIES,
    interpolate,
    sample_times,
    shift_times,
    velocity,
    velocity_towards,
)


@pytest.fixture(params=[(3, 4, 2), (3, 2, 4, 4)], ids=["latents", "images"])
def pair(request):
    torch.manual_seed(0)
    return torch.randn(2, *request.param, dtype=torch.float64).unbind()


def test_time_0_is_noise_and_time_1_is_data(pair):
    data, noise = pair
    assert torch.equal(interpolate(data, noise, torch.zeros(3)), noise)
    assert torch.equal(interpolate(data, noise, torch.ones(3)), data)
    assert not torch.allclose(interpolate(noise, data, torch.zeros(3)), noise), "swapped arguments must show"


def test_the_path_is_the_formula_and_every_example_has_its_time(pair):
    data, noise = pair
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = interpolate(data, noise, t)
    for i in range(3):
        torch.testing.assert_close(x[i], t[i] * data[i] + (1 - t[i]) * noise[i])


def test_positions_can_have_times_of_their_own():
    data, noise = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    t = torch.rand(3, 4, dtype=torch.float64)
    x = interpolate(data, noise, t)
    torch.testing.assert_close(x[2, 1], t[2, 1] * data[2, 1] + (1 - t[2, 1]) * noise[2, 1])


def test_the_path_moves_with_the_velocity(pair):
    data, noise = pair
    low, high = (interpolate(data, noise, torch.full((3,), t)) for t in (0.25, 0.75))
    torch.testing.assert_close((high - low) / 0.5, velocity(data, noise))


def test_predicted_data_is_a_velocity(pair):
    data, noise = pair
    t = torch.tensor([0.0, 0.5, 0.96], dtype=torch.float64)
    x = interpolate(data, noise, t)
    found = velocity_towards(data, x, t, least_noise=0.05)
    torch.testing.assert_close(found[:2], velocity(data, noise)[:2])
    torch.testing.assert_close(found[2], (data[2] - x[2]) / 0.05)  # 1 - t is taken to be 0.05 there
    assert not torch.allclose(found[2], velocity(data, noise)[2])


@pytest.mark.parametrize("stratified", [True, False])
def test_times_have_the_density_they_are_named_after(stratified):
    torch.manual_seed(0)
    times = {name: sample_times(20_000, name, stratified=stratified) for name in TIME_DENSITIES}
    for t in times.values():
        assert t.shape == (20_000,)
        assert ((t >= 0) & (t < 1)).all()
    quarters = torch.tensor([0.25, 0.5, 0.75])
    loose = 1e-3 if stratified else 1e-2
    torch.testing.assert_close(times["uniform"].quantile(quarters), quarters, atol=loose, rtol=0)
    normal = torch.special.ndtri(quarters).sigmoid()
    torch.testing.assert_close(times["logit_normal"].quantile(quarters), normal, atol=loose, rtol=0)
    assert not torch.allclose(times["logit_normal"].quantile(quarters), quarters, atol=loose)


@pytest.mark.parametrize("density", TIME_DENSITIES)
def test_stratified_times_are_one_in_each_equal_share(density):
    torch.manual_seed(0)
    shares = {}
    for stratified in (True, False):
        t = sample_times(64, density, stratified=stratified)
        share = t if density == "uniform" else torch.special.ndtr(t.logit())
        shares[stratified] = sorted((share * 64).long().tolist())
        assert t.tolist() != sorted(t.tolist())  # shuffled
    assert shares[True] == list(range(64))
    assert shares[False] != list(range(64))


def test_a_shift_is_the_formula_of_noise():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    noise = 1 - t
    torch.testing.assert_close(1 - shift_times(t, 3.0), 3 * noise / (1 + 2 * noise))
    assert torch.equal(shift_times(t, 1.0), t)
    torch.testing.assert_close(shift_times(shift_times(t, 3.0), 1 / 3), t)
    assert float(shift_times(t, 3.0)[5]) == 0.25  # earlier, where there is more noise
