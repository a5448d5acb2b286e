"""Solvers on equations whose solution is known, and where they evaluate."""

import math

import pytest
import torch

from tokenizers_mm.blocks.rectified_flow import velocity
from tokenizers_mm.blocks.solvers import SOLVERS, solve


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("evaluates_end", [True, False])
def test_the_true_velocity_integrates_to_the_data(solver, evaluates_end):
    data, noise = torch.randn(2, 3, 4, 2)
    options = {"steps": 7, "solver": solver, "evaluates_end": evaluates_end}
    torch.testing.assert_close(solve(lambda x, t: velocity(data, noise), noise, **options), data, atol=1e-5, rtol=0)
    swapped = solve(lambda x, t: velocity(noise, data), noise, **options)
    assert (swapped - data).abs().max() > 1


def error(solver, steps, **options):
    """Of dx/dt = x t from 1, whose solution is exp(t^2 / 2)."""
    start = torch.ones(2, 1, 1, dtype=torch.float64)
    return abs(
        float(solve(lambda x, t: x * t[:, None, None], start, steps=steps, solver=solver, **options)[1, 0, 0])
        - math.exp(0.5)
    )


def test_halving_the_step_halves_the_error_of_euler_and_quarters_that_of_heun():
    assert error("euler", 64) / error("euler", 128) == pytest.approx(2, rel=0.03)
    assert error("heun", 64) / error("heun", 128) == pytest.approx(4, rel=0.03)


def test_one_euler_step_at_the_end_costs_heun_little():
    """One step of Euler's has an error of the second order, so the whole keeps its order."""
    assert 3.5 < error("heun", 64, evaluates_end=False) / error("heun", 128, evaluates_end=False) < 4.5
    assert error("heun", 64) < error("heun", 64, evaluates_end=False) < error("euler", 64) / 20
    assert error("euler", 64, evaluates_end=False) == error("euler", 64)


@pytest.mark.parametrize(
    ("solver", "evaluates_end", "times"),
    [
        ("euler", True, [0, 1 / 3, 2 / 3]),
        ("euler", False, [0, 1 / 3, 2 / 3]),
        ("heun", True, [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1]),
        ("heun", False, [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3]),
    ],
)
def test_where_the_field_is_evaluated(solver, evaluates_end, times):
    seen = []
    solve(lambda x, t: seen.append(t) or x, torch.ones(5, 2), steps=3, solver=solver, evaluates_end=evaluates_end)
    assert all(t.shape == (5,) and len(set(t.tolist())) == 1 for t in seen)
    assert [float(t[0]) for t in seen] == pytest.approx(times)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_times_are_not_rounded_to_half_precision(dtype, wanted):
    seen = []
    out = solve(lambda x, t: seen.append(t.dtype) or x, torch.ones(1, 2, dtype=dtype), steps=2, solver="heun")
    assert set(seen) == {wanted}
    assert out.dtype == dtype


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="solver='rk4': expected one of euler, heun"):
        solve(lambda x, t: x, torch.ones(1), steps=2, solver="rk4")
    with pytest.raises(ValueError, match="steps=0"):
        solve(lambda x, t: x, torch.ones(1), steps=0, solver="euler")
