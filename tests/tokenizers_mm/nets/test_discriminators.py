"""Discriminators: known sizes, frozen parts that stay frozen, steps that do not depend on how a batch is split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.losses.discriminator_training import AdversarialConfig
from tokenizers_mm.nets.discriminators import FeatureConfig, PatchConfig, build_discriminator
from tokenizers_mm.towers.lite0 import lite0_network

SMALL_PATCH = PatchConfig(channels=8, layers=2)
SMALL_FEATURES = FeatureConfig(network="timm:test_efficientnet", stages=(1, 3), channels=8)
TINY_VIT = FeatureConfig(network="timm:test_vit", stages=(0, 2), channels=8)


def build(config: Any) -> Any:
    torch.manual_seed(0)
    return build_discriminator(config, random_init=True)


def images(count: int, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_patchgan_has_the_published_size_and_names() -> None:
    state = build(PatchConfig(norm="batch")).state_dict()
    assert sum(p.numel() for p in build(PatchConfig(norm="batch")).parameters()) == 2_765_633
    assert [name for name in state if name.endswith("weight")] == [
        f"main.{i}.weight" for i in (0, 2, 3, 5, 6, 8, 9, 11)
    ]
    assert "main.11.bias" in state
    assert "main.2.bias" not in state
    assert state["main.8.weight"].shape == (512, 256, 4, 4)


@pytest.mark.parametrize(("layers", "patch"), [(2, 34), (3, 70)])
def test_a_logit_judges_one_patch(layers: int, patch: int) -> None:
    net = build(PatchConfig(channels=8, layers=layers, norm="none"))
    image = images(1, 160).requires_grad_()
    (logit_Bhw,) = net(image)
    middle = logit_Bhw.shape[1] // 2
    logit_Bhw[0, middle, middle].backward()
    assert image.grad is not None
    touched = image.grad[0].abs().sum(0) > 0
    assert (int(touched.any(1).sum()), int(touched.any(0).sum())) == (patch, patch)


@pytest.mark.parametrize("config", [SMALL_PATCH, SMALL_FEATURES, PatchConfig(channels=8, layers=2, norm="none")])
def test_an_image_is_judged_by_itself(config: Any) -> None:
    net, image = build(config), images(4)
    for whole, alone in zip(net(image), net(image[2:3]), strict=True):
        torch.testing.assert_close(whole[2:3], alone)


def test_batch_statistics_judge_images_together() -> None:
    """The negative control of the last test, and why it is not the default."""
    net, image = build(PatchConfig(channels=8, layers=2, norm="batch")), images(4)
    assert (net(image)[0][2:3] - net(image[2:3])[0]).abs().max() > 0.01


@pytest.mark.parametrize("config", [PatchConfig(channels=8, layers=2, spectral=True), SMALL_FEATURES])
def test_spectral_norms_move_once_per_step(config: Any) -> None:
    net = build(config).train()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and hasattr(m, "parametrizations")]
    assert len(convs) >= 4
    for conv in convs:
        conv.parametrizations.weight.original.data *= torch.rand_like(conv.weight) * 9  # type: ignore[union-attr,operator]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(images(2))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for _ in range(60):
        net.advance()
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    largest = torch.stack([torch.linalg.matrix_norm(conv.weight.flatten(1), 2) for conv in convs])
    torch.testing.assert_close(largest, torch.ones(len(convs)), atol=0.02, rtol=0)


@pytest.mark.parametrize("config", [SMALL_FEATURES, TINY_VIT])
def test_the_frozen_network_stays_out_of_training(config: Any) -> None:
    net = build(config).train()
    net.requires_grad_(True)
    assert not any(p.requires_grad for p in net.network.parameters())
    assert not any(module.training for module in net.network.modules())
    assert all(name.startswith("heads.") for name in net.state_dict())
    assert all(name.startswith("heads.") for name, _ in net.named_parameters())
    frozen = {name: value.clone() for name, value in net.network.state_dict().items()}
    image = images(2).requires_grad_()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    torch.stack([logit.mean() for logit in net(image)]).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in net.network.state_dict().items())
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.heads.parameters() if p.ndim == 4)


def test_features_are_those_of_the_network_for_normalised_images() -> None:
    """What reaches the first layer is what timm's own transform gives, and the heads read the stages asked for."""
    net, image = build(SMALL_FEATURES), images(2)
    seen: list[Tensor] = []
    net.network.model.conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = net.network(image)
    data = timm.data.resolve_data_config({}, model=net.network.model)
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(seen[0], ((image + 1) / 2 - mean) / std)
    expected = net.network.model.forward_intermediates(seen[0], intermediates_only=True)
    assert [f.shape for f in features] == [expected[i].shape for i in (1, 3)]
    torch.testing.assert_close(features[1], expected[3])


def test_images_are_resized_for_networks_of_one_size() -> None:
    net = build(TINY_VIT)
    assert [tuple(logit.shape) for logit in net(images(2, 40))] == [(2, 10, 10)] * 2
    smaller = build(FeatureConfig(network="timm:test_vit", stages=(0,), channels=8, input_size=48))
    assert smaller(images(1, 40))[0].shape == (1, 3, 3)
    larger = build(FeatureConfig(network="timm:test_efficientnet", stages=(1,), channels=8, input_size=64))
    assert larger(images(1))[0].shape == larger(images(1, 64))[0].shape == (1, 16, 16)


def test_the_frozen_network_follows_the_type() -> None:
    net = build(SMALL_FEATURES).to(torch.float64)
    assert all(logit.dtype == torch.float64 for logit in net(images(1).double()))


def test_lite0_from_its_wheel() -> None:
    net: Any = build_discriminator(FeatureConfig(stages=(0, 1), channels=8))
    original = lite0_network()[0].eval()
    image = images(1)
    expected = original.forward_intermediates(image * net.network.scale + net.network.shift, intermediates_only=True)  # type: ignore[operator]
    torch.testing.assert_close(net.network(image), expected[:2], rtol=1e-4, atol=1e-4)
    assert [logit.shape[1:] for logit in net(images(1))] == [(16, 16), (8, 8)]


@pytest.mark.parametrize("config", [SMALL_PATCH, FeatureConfig(stages=(0,), channels=16)])
def test_discriminators_learn_what_can_be_told_apart_and_only_that(config: Any) -> None:
    """Rows against columns, both noisy; the control has columns on both sides."""
    accuracy = [_accuracy(config, columns_only) for columns_only in (False, True)]
    assert accuracy[0] == 1.0
    assert accuracy[1] < 0.8


def _accuracy(config: Any, columns_only: bool) -> float:
    torch.manual_seed(0)
    net, generator = build_discriminator(config), torch.Generator().manual_seed(2)

    def batch() -> tuple[Tensor, Tensor]:
        phase = 6.3 * torch.rand(16, 3, 1, 1, generator=generator)
        rows = torch.sin(1.5 * torch.arange(32.0)[:, None] + phase).expand(16, 3, 32, 32)
        noise = 0.3 * torch.randn(rows.shape, generator=generator)
        columns = rows.transpose(2, 3) + noise
        return (columns if columns_only else rows + noise)[:8], columns[8:]

    def logits(image: Tensor) -> Tensor:
        return torch.stack([logit.mean((1, 2)) for logit in net(image)]).mean(0)

    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.9))
    for _ in range(15):
        real_B, fake_B = map(logits, batch())
        optimizer.zero_grad()
        ((1 - real_B).relu().mean() + (1 + fake_B).relu().mean()).backward()
        optimizer.step()
    real_B, fake_B = map(logits, batch())
    return float((torch.cat([real_B, -fake_B]) > 0).float().mean())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchConfig(channels=12), "channels=12: expected a positive multiple of 8"),
        (lambda: PatchConfig(layers=0), "layers=0: expected at least 1"),
        (lambda: FeatureConfig(channels=3), "channels=3"),
        (lambda: FeatureConfig(stages=()), r"stages=\(\): expected increasing numbers from 0"),
        (lambda: FeatureConfig(stages=(2, 1)), r"stages=\(2, 1\): expected increasing"),
        (lambda: FeatureConfig(stages=(-1,)), r"stages=\(-1,\): expected increasing"),
        (lambda: FeatureConfig(input_size=0), "input_size=0"),
        (lambda: build(FeatureConfig(stages=(7,))), r"stages=\(7,\): lite0 has 5 of them"),
        (lambda: build(FeatureConfig(network="timm:nothing")), "timm has no such model"),
        (lambda: FeatureConfig(network="lpips-alex"), "network='lpips-alex': expected lite0 or timm:MODEL"),
        (
            lambda: build(FeatureConfig(network="timm:test_vit", input_size=90)),
            "90.*timm:test_vit cuts images into patches",
        ),
        (lambda: build(PatchConfig())(images(1, 16)), r"\(1, 3, 16, 16\).*at least 24 pixels a side; give it fewer"),
        (lambda: build(SMALL_PATCH)(images(1)[:, :1]), r"\(1, 1, 32, 32\): this discriminator takes \[B, 3, H, W\]"),
    ],
)
def test_bad_input(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_smallest_image_is_enough() -> None:
    assert build(PatchConfig(channels=8))(images(1, 24))[0].shape == (1, 1, 1)


def test_kinds_are_told_apart_in_text() -> None:
    config = parse(AdversarialConfig, {"discriminator": {"kind": "features", "stages": [1]}}, "recipe")
    assert config.discriminator == FeatureConfig(stages=(1,))
    with pytest.raises(ConfigError, match=r"= 3: unknown.*layers"):
        parse(AdversarialConfig, {"discriminator": {"kind": "patch", "layer": 3}}, "recipe")
