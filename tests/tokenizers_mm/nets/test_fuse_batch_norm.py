"""A folded network is the same function, of values and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tokenizers_mm.nets.fuse_batch_norm import fold_batch_norms


def network(name: str) -> Any:
    """With statistics that are not the identity, as after training; in float64, where rounding cannot hide an error."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                tensor.data.add_(torch.rand_like(tensor))
    return model


def features(model: Any, image: Tensor) -> list[Tensor]:
    maps: list[Tensor] = model.forward_intermediates(image, intermediates_only=True)
    return maps


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_efficientnet"])
def test_values_and_gradients_stay(name: str) -> None:
    model = network(name)
    folded = fold_batch_norms(copy.deepcopy(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    found = []
    for net in (model, folded):
        image = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        maps = features(net, image.requires_grad_())
        torch.stack([m.square().mean().sqrt() for m in maps]).sum().backward()
        found.append([*maps, image.grad])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
    assert not any(p.requires_grad for p in folded.parameters())


def test_other_networks_are_left_alone() -> None:
    model = network("resnet10t")
    before = copy.deepcopy(model.state_dict())
    assert fold_batch_norms(model) is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
