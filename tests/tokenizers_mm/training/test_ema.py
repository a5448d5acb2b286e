import pytest
import torch
from torch import nn

from tokenizers_mm.training.ema import EMA


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.tied = nn.Linear(2, 3)
        self.tied.weight = self.layer.weight
        self.frozen = nn.Parameter(torch.ones(2) / 3, requires_grad=False)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("table", torch.zeros(2))


def moved(net, value):
    with torch.no_grad():
        net.layer.weight.fill_(value)
        net.layer.bias.fill_(-value)
        net.steps.fill_(int(value))
        net.table.fill_(value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_closed_form(decay):
    net = Net()
    moved(net, 1.0)
    ema, expected = EMA(net, decay), 1.0
    for n in range(30):
        moved(net, n + 2.0)
        ema.update(net)
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * (n + 2)
    averaged = Net()
    ema.copy_to(averaged)
    for name in ("layer.weight", "tied.weight"):
        torch.testing.assert_close(averaged.state_dict()[name], torch.full((3, 2), expected))
    torch.testing.assert_close(averaged.layer.bias.data, torch.full((3,), -expected))
    assert torch.equal(averaged.frozen, net.frozen)
    # buffers are copied, not averaged
    assert int(averaged.steps) == 31
    assert averaged.table.tolist() == [31, 31]


def test_swapped_gives_the_weights_back_even_after_an_error():
    net = Net()
    moved(net, 1.0)
    ema = EMA(net, 0.9)
    moved(net, 5.0)

    def picture():
        with ema.swapped(net):
            assert net.layer.weight.flatten().tolist() == [1] * 6
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        picture()
    assert net.layer.weight.flatten().tolist() == [5] * 6
    assert int(net.steps) == 5


def test_updates_do_not_reach_the_module():
    net = Net()
    ema = EMA(net, 0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ema.update(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_state_round_trip_continues_the_average():
    net = Net()
    first, second = EMA(net, 0.9), EMA(Net(), 0.9)
    for n in range(3):
        moved(net, float(n))
        first.update(net)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    moved(net, 7.0)
    first.update(net)
    second.update(net)
    assert first.updates == second.updates == 4
    assert all(torch.equal(first.shadow[name], second.shadow[name]) for name in first.shadow)
