"""Classifier-free guidance."""

import pytest
import torch

from backbones.guidance import check_scale, guide


def test_guidance_one_is_the_conditional_and_zero_the_unconditional():
    torch.manual_seed(0)
    conditional, unconditional = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional)


@pytest.mark.parametrize("scale", [-0.5, float("nan")])
def test_scales_that_mean_nothing_are_refused(scale):
    with pytest.raises(ValueError, match=f"guidance={scale}"):
        check_scale(scale)
