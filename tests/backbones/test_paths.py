"""The time convention, the solvers and guidance."""

import math

import pytest
import torch

from backbones.guidance import check_scale, guide
from backbones.paths import DENSITIES, SOLVERS, interpolate, solve, velocity


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(3, 4, 2), torch.randn(3, 4, 2)


def test_time_0_is_noise_and_time_1_is_data(pair):
    data, noise = pair
    assert torch.equal(interpolate(data, noise, torch.zeros(3)), noise)
    assert torch.equal(interpolate(data, noise, torch.ones(3)), data)
    assert not torch.allclose(interpolate(noise, data, torch.zeros(3)), noise), "swapped arguments must show"


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_true_velocity_integrates_to_the_data(pair, solver):
    data, noise = pair
    found = solve(lambda x, t: velocity(data, noise), noise, steps=7, solver=solver)
    torch.testing.assert_close(found, data, atol=1e-5, rtol=0)
    swapped = solve(lambda x, t: velocity(noise, data), noise, steps=7, solver=solver)
    assert (swapped - data).abs().max() > 1


def test_the_path_moves_with_the_velocity(pair):
    data, noise = pair
    low, high = (interpolate(data, noise, torch.full((3,), t)) for t in (0.25, 0.75))
    torch.testing.assert_close((high - low) / 0.5, velocity(data, noise))


def test_heun_is_second_order_and_euler_first():
    start = torch.ones(1, 1, 1)

    def error(solver, steps):
        return abs(solve(lambda x, t: x * t[:, None, None], start, steps=steps, solver=solver).item() - math.exp(0.5))

    assert error("euler", 20) / error("euler", 40) == pytest.approx(2, rel=0.1)
    assert error("heun", 20) / error("heun", 40) == pytest.approx(4, rel=0.1)


def test_densities_have_the_shape_they_are_named_after():
    torch.manual_seed(0)
    times = {name: density(4000, torch.device("cpu")) for name, density in DENSITIES.items()}
    for t in times.values():
        assert t.shape == (4000,)
        assert ((t > 0) & (t < 1)).all()
    torch.testing.assert_close(
        times["uniform"].quantile(torch.tensor([0.25, 0.5])), torch.tensor([0.25, 0.5]), atol=1e-3, rtol=0
    )
    logit = times["logit_normal"].logit()
    assert abs(logit.mean()) < 0.01
    assert logit.std() == pytest.approx(1, abs=0.01)


def test_guidance_one_is_the_conditional_and_zero_the_unconditional():
    torch.manual_seed(0)
    conditional, unconditional = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional)


def test_bad_arguments_are_refused(pair):
    with pytest.raises(ValueError, match="solver='rk4': expected one of euler, heun"):
        solve(lambda x, t: x, pair[0], steps=2, solver="rk4")
    with pytest.raises(ValueError, match="steps=0"):
        solve(lambda x, t: x, pair[0], steps=0, solver="euler")
    with pytest.raises(ValueError, match=r"guidance=-0\.5"):
        check_scale(-0.5)
    with pytest.raises(ValueError, match="guidance=nan"):
        check_scale(float("nan"))
