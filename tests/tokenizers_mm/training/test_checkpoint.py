"""Checkpoints of training: exact, of tensors and JSON alone, and told when they are damaged."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tokenizers_mm.training.checkpoint import TrainState, random_numbers, restore_random_numbers
from tokenizers_mm.training.ema import EMA


class Net(nn.Module):
    """Weights of two kinds, one of them used twice, and a buffer."""

    def __init__(self, width=3):
        super().__init__()
        self.a, self.b = nn.Linear(width, 2), nn.Parameter(torch.randn(2, dtype=torch.bfloat16))
        self.again = self.a
        self.register_buffer("count", torch.tensor(0))


def trained(width=3, seed=0, steps=2):
    """A state of two modules after some steps."""
    torch.manual_seed(seed)
    parts = {}
    for name in ("model", "adversary"):
        net = Net(width)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        for _ in range(steps):
            (net.a(torch.randn(4, width)).square().mean() + net.b.float().sum()).backward()
            optimizer.step()
            net.count += 1
        parts[name] = (net, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    ema = EMA(parts["model"][0], 0.9)
    if steps:
        ema.update(parts["model"][0])
        scaler.load_state_dict({**scaler.state_dict(), "scale": 12345.678, "_growth_tracker": 2})
    return TrainState(parts, ema, scaler)


def everything(state):
    found = {"scaler": state.scaler.state_dict(), "ema": state.ema.state_dict()}
    for name, (module, optimizer) in state.parts.items():
        found |= {name: module.state_dict(), f"{name}'s moments": optimizer.state_dict()["state"]}
    return found


def same(a, b):
    """Equal values of equal types."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "step_0000002"
    folder.mkdir()
    state = trained()
    state.write(folder, 2)
    state.write_random(folder, 0)
    return folder, state


def test_what_is_written_comes_back_bit_for_bit(written):
    folder, state = written
    assert sorted(file.name for file in folder.iterdir()) == [
        "adversary.safetensors",
        "adversary_optimizer.safetensors",
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "random_0.json",
        "state.json",
    ]
    fresh = trained(seed=1, steps=0)
    assert not same(everything(fresh), everything(state))
    fresh.read(folder, 0, seed=5)
    assert same(everything(fresh), everything(state))
    assert fresh.parts["model"][0].a is fresh.parts["model"][0].again
    # What was read outlives the files: checkpoints are deleted while training goes on.
    for file in folder.iterdir():
        file.write_bytes(b"")
    assert same(everything(fresh), everything(state))


def test_random_numbers_go_on_where_they_were():
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    random.gauss(0, 1), np.random.randn()  # each keeps a second normal number back
    state = json.loads(json.dumps(random_numbers()))
    expected = [draw(), draw()]
    assert [draw(), draw()] != expected
    restore_random_numbers(state)
    assert [draw(), draw()] == expected


def test_a_process_that_the_checkpoint_knows_nothing_of(written):
    folder, _ = written
    with pytest.warns(UserWarning, match=r"step_0000002: written.*processes.*1"):
        trained(steps=0).read(folder, 1, seed=5)


DAMAGE = {
    "cut short": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-9]
    ),
    "without its optimiser": lambda folder: (folder / "adversary_optimizer.safetensors").unlink(),
    "no JSON": lambda folder: (folder / "state.json").write_text("{"),
    "of an older version": lambda folder: [file.unlink() for file in folder.glob("*.json")],
    "other random numbers": lambda folder: (folder / "random_0.json").write_text("{}"),
    "more moments": lambda folder: save_file(
        {**load_file(folder / "optimizer.safetensors"), "99.step": torch.ones(1)}, folder / "optimizer.safetensors"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_with_the_remedy(written, damage):
    folder, _ = written
    damage(folder)
    with pytest.raises(ValueError, match=r"step_0000002:.*checkpoint.*remove") as e:
        trained(steps=0).read(folder, 0, seed=5)
    assert "\n" not in str(e.value)


def test_a_checkpoint_of_other_modules_is_named(written):
    folder, _ = written
    with pytest.raises(ValueError, match=r"step_0000002: no checkpoint .*size mismatch for a\.weight"):
        trained(width=4, steps=0).read(folder, 0, seed=5)
