"""State dicts are loaded whole or not at all, and the error says how they differ."""

import pytest
import torch
from torch import nn

from tokenizers_mm.weights import OPTIONS_MAY_DIFFER, CheckpointError, load_strict


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def state_of(fill):
    return {key: torch.full_like(value, fill) for key, value in network().state_dict().items()}


DIFFERENCES = {
    "missing": (lambda s: s.pop("0.bias"), r"missing keys: 0\.bias"),
    "many missing": (lambda s: [s.pop(key) for key in list(s)[:6]], r"missing keys: (\S+, ){3}\S+ and 2 more"),
    "extra": (lambda s: s.update(head=torch.ones(1)), "unexpected keys: head"),
    "shape": (lambda s: s.update({"0.bias": torch.ones(4)}), r"wrong shapes: 0\.bias \(4,\) \(expected \(3,\)\)"),
    "all": (
        lambda s: s.update({"0.bias": torch.ones(4), "b": s.pop("0.weight")}),
        r"missing keys: 0\.weight; unexpected keys: b; wrong shapes: 0\.bias .*",
    ),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_are_named_and_nothing_is_loaded(name, assign):
    change, message = DIFFERENCES[name]
    state, model = state_of(5), network()
    change(state)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for options, remedy in (
        ({}, "give the weights of exactly this network"),
        ({"remedy": OPTIONS_MAY_DIFFER}, "say c"),
    ):
        with pytest.raises(CheckpointError, match=rf"^file\.pt: {message}.*{remedy}"):
            load_strict(model, state, "file.pt", assign=assign, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_whole_state_is_loaded_and_leftovers_are_not():
    model = network()
    with pytest.raises(CheckpointError, match=r"unexpected keys: head\.bias"):
        load_strict(model, state_of(5) | {"head.bias": torch.ones(1)}, "file.pt", leftover=["other."])
    load_strict(model, state_of(5) | {"head.bias": torch.ones(1)}, "file.pt", leftover=["head."])
    assert all(bool((value == 5).all()) for value in model.state_dict().values())


def test_assigned_tensors_are_the_models_own():
    state = state_of(5)
    copied, assigned = network(), network()
    load_strict(copied, state, "file.pt")
    load_strict(assigned, state, "file.pt", assign=True)
    state["0.bias"].zero_()
    assert copied[0].bias.tolist() == [5, 5, 5]
    assert assigned[0].bias.tolist() == [0, 0, 0]


def test_integers_are_not_assigned_to_floats():
    state = state_of(5) | {"0.bias": torch.ones(3, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r"^file\.pt: 0\.bias is torch\.int8: expected floats"):
        load_strict(network(), state, "file.pt", assign=True)
