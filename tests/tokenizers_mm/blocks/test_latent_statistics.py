import pytest
import torch
from torch import nn

from tokenizers_mm.blocks import WithLatents


class Coded(WithLatents):
    """A net, and a table that keeps its bits."""

    latents_name, full_precision = "own", ("table",)

    def __init__(self, *shape):
        super().__init__()
        self.net, self.table, self.token_D = nn.Linear(2, 2), nn.Embedding(3, 2), nn.Parameter(torch.ones(2))
        if shape:
            self.register_statistics(*shape)


def test_statistics_are_buffers_of_the_module_itself():
    assert set(Coded(2).state_dict()) - set(Coded().state_dict()) == {"own_mean_D", "own_std_D"}
    mean, std = Coded(3, 2).statistics
    assert (mean.tolist(), std.tolist()) == ([[0, 0]] * 3, [[1, 1]] * 3)
    with pytest.raises(ValueError, match="has no statistics"):
        Coded().set_statistics(0.0, 1.0)


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16)], ids=["half", "to"])
def test_only_nets_lose_bits(cast):
    model = cast(Coded(2))
    assert model.net.weight.dtype in (torch.float16, torch.bfloat16)
    own = (model.table.weight, model.token_D, *model.statistics)
    assert {value.dtype for value in own} == {torch.float32}
    assert {value.dtype for value in model.double().state_dict().values()} == {torch.float64}


def test_statistics_are_measured_per_channel_or_per_position():
    z_BND = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1
    channels, positions = Coded(2), Coded(3, 2)
    for model in (channels, positions):
        model.measure_statistics([z_BND[:20], z_BND[20:]])
    torch.testing.assert_close(channels.statistics, (z_BND.mean((0, 1)), z_BND.flatten(0, 1).std(0)))
    torch.testing.assert_close(positions.statistics, (z_BND.mean(0), z_BND.std(0)))
    channels.measure_statistics([torch.ones(4, 3, 2)])
    assert float(channels.statistics[1].min()) > 0


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(3), 1.0, r"statistics of shape \(3,\): expected \(5, 2\)"),
        (torch.zeros(4, 2), 1.0, r"statistics of shape \(4, 2\): expected \(5, 2\)"),
        (0.0, 0.0, "deviations positive"),
        (0.0, float("inf"), "must be finite"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Coded(5, 2).set_statistics(mean, std)


def test_statistics_per_channel_broadcast_to_positions():
    model = Coded(5, 2)
    model.set_statistics(torch.tensor([1.0, 2.0]), 3.0)
    assert model.statistics[0].tolist() == [[1, 2]] * 5
    assert model.statistics[1].tolist() == [[3, 3]] * 5
