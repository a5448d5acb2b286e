import pytest
import torch

from quantizers import FSQ


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 999, 1000])
def test_every_level_is_reached_and_none_beyond(level):
    fsq = FSQ([level])
    z = torch.cat([torch.linspace(-8, 8, 400_001), torch.tensor([-1e30, 1e30])])[None, :, None]
    codes = fsq.encode(z)
    assert codes.unique().tolist() == list(range(level))
    assert codes[0, -2:, 0].tolist() == [0, level - 1]
    assert bool((codes[0, 1:-2] >= codes[0, :-3]).all())


@pytest.mark.parametrize("levels", [[], [1], [8, 1], [1001], [2] * 63])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels="):
        FSQ(levels)


def test_first_channel_is_the_least_significant_digit():
    fsq = FSQ([8, 5])
    vectors = fsq.decode(torch.tensor([[[0], [1], [8], [39]]]))[0]
    assert vectors.tolist() == [[-1, -1], [-0.75, -1], [-1, -0.5], [0.75, 1]]


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 2, 2], [7, 4]])
def test_zero_is_a_code_and_stays_zero(levels):
    fsq = FSQ(levels)
    zero = torch.zeros(1, 1, len(levels))
    assert torch.equal(fsq.decode(fsq.encode(zero)), zero)
    assert torch.equal(fsq.codes_of(zero), fsq.encode(zero))


def test_the_largest_vocabulary_keeps_its_codes():
    fsq = FSQ([1000] * 6)
    codes = torch.randint(10**18, (1, 1000, 1))
    assert torch.equal(fsq.codes_of(fsq.decode(codes)), codes)


def test_gradient_is_that_of_the_bounded_value():
    fsq = FSQ([5, 8])
    z = torch.randn(1, 20, 2, requires_grad=True)
    (straight,) = torch.autograd.grad(fsq(z).z_BND.sum(), z)
    bounded = torch.tanh(z + fsq.shift_D) * fsq.half_D / torch.tensor([2, 4])
    (expected,) = torch.autograd.grad(bounded.sum(), z)
    torch.testing.assert_close(straight, expected)
    assert float(fsq(z).loss) == 0
