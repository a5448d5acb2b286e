import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from quantizers import Gaussian


def test_loss_is_the_divergence_from_a_standard_normal_in_nats_per_element():
    gaussian = Gaussian(3)
    moments = torch.randn(2, 5, 6)
    mean, logvar = moments.chunk(2, -1)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    out = gaussian(moments)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.stats["kl_bits_per_position"], expected * 3 / math.log(2))
    assert out.codes_BNS is None


def test_training_samples_the_posterior_and_evaluation_takes_its_mean():
    gaussian = Gaussian(1)
    moments = torch.tensor([2.0, 2 * math.log(0.5)]).expand(1, 100_000, 2)
    sample = gaussian.train()(moments).z_BND
    assert abs(float(sample.mean()) - 2) < 0.01
    assert abs(float(sample.std()) - 0.5) < 0.01
    assert torch.equal(gaussian.eval()(moments).z_BND, moments[..., :1])
    assert torch.equal(gaussian.train().encode(moments), moments[..., :1])


def test_extreme_variances_stay_finite():
    gaussian = Gaussian(1).train()
    moments = torch.tensor([[[0.0, 1e4], [0.0, -1e4]]], requires_grad=True)
    out = gaussian(moments)
    assert gaussian.posterior(moments)[1].flatten().tolist() == [20, -30]
    assert bool(torch.isfinite(out.z_BND).all() and torch.isfinite(out.loss))
    (gradient,) = torch.autograd.grad(out.loss, moments)
    assert bool(torch.isfinite(gradient).all())


def test_zero_channels_are_refused():
    with pytest.raises(ValueError, match=r"dim=0.*at least 1"):
        Gaussian(0)
