"""Names of devices: those that are there, and one line for those that are not."""

import pytest
import torch

from tokenizers_mm.runtime.device import choose_device


@pytest.fixture
def cards(monkeypatch):
    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")

    return pretend


@pytest.mark.parametrize(
    ("count", "name", "device"),
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda:0"),
        (0, "cpu", "cpu"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_names_become_devices(cards, count, name, device):
    cards(count)
    assert choose_device(name) == torch.device(device)


def test_a_device_is_left_as_it_is():
    assert choose_device(torch.device("meta")) == torch.device("meta")


@pytest.mark.parametrize("name", ["cuda:2", "cuda:", "cuda:-1", "cuda:x", "gpu", "", "mps", "cpu:0", "cuda:0:1"])
def test_what_is_not_there_is_named(cards, name):
    cards(2)
    with pytest.raises(ValueError, match=rf"device '{name}': .*has the CPU and cuda:0 \(card 0\), cuda:1 \(card 1\)$"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_without_a_card(cards, name):
    cards(0)
    with pytest.raises(ValueError, match=rf"device '{name}': .*this machine has the CPU and no CUDA device$"):
        choose_device(name)
