"""The training loop: resuming is exact, nothing bad reaches the weights, several processes are one."""

import json
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.data.sources import ImageArrays
from tokenizers_mm.losses.terms import Losses
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.loop import train
from tokenizers_mm.training.objective import ObjectiveConfig, TokenizerObjective
from tokenizers_mm.training.protocols import Objective
from tokenizers_mm.training.step import DivergenceError

# Without attention: the gradient of its key bias is zero up to rounding, and Adam makes steps of full size of that.
NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2, middle_attention=False)
GAUSSIAN, VQ, FSQ = {"kind": "gaussian", "dim": 3}, {"kind": "vq", "size": 16, "dim": 3}, {"kind": "fsq"}
# 11 images and batches of 4: epochs end within batches, and a checkpoint every 3 steps within epochs.
CONFIG = TrainConfig(
    steps=8, batch_size=4, warmup=2, ema=0.9, log_every=1, checkpoint_every=3, tracker="none", learning_rate=1e-3
)


class Interrupted(ImageArrays):
    """A source that fails at its n-th batch."""

    def __init__(self, fails_at=None):
        super().__init__(np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8))
        self.left = fails_at

    def batch(self, draws):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("the source is gone")
        return super().batch(draws)


def objective_of(bottleneck, seed=0):
    torch.manual_seed(seed)
    config = AutoencoderConfig(image_size=(16, 16), bottleneck=bottleneck, net=NET)
    return TokenizerObjective(build_autoencoder(config), ObjectiveConfig(l2=0.5, bottleneck=0.1))


def last_state(folder):
    """Everything in the newest checkpoint, as flat tensors: weights, EMA, optimiser, step, random numbers."""
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    assert {file.suffix for file in newest.iterdir()} == {".safetensors", ".json"}  # never a pickle
    state = {f"{f.stem}.{k}": v for f in sorted(newest.glob("*.safetensors")) for k, v in load_file(f).items()}
    return state | {f.name: torch.tensor(list(f.read_bytes())) for f in newest.glob("*.json")}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def history_of(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


# ------------------------------------------------------------------------------------------------------- resuming


INTERRUPTIONS = [({}, 2), ({}, 5), ({}, 6), ({"accumulate": 2}, 5), ({"workers": 1}, 5)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Folder and objective of a run that nothing interrupted, by its bottleneck and configuration."""
    kept = {}

    def of(bottleneck, config):
        key = str((bottleneck, config))
        if key not in kept:
            folder, objective = tmp_path_factory.mktemp("whole"), objective_of(bottleneck)
            train(objective, Interrupted(), config, folder)
            kept[key] = folder, objective
        return kept[key]

    return of


@pytest.mark.parametrize(("changes", "fails_at"), INTERRUPTIONS, ids=str)
@pytest.mark.parametrize("bottleneck", [GAUSSIAN, VQ], ids=["vae", "vq"])
def test_an_interrupted_run_resumes_exactly(tmp_path, whole_run, bottleneck, changes, fails_at):
    config = replace(CONFIG, **changes)
    whole_folder, whole = whole_run(bottleneck, config)

    source = Interrupted(fails_at * config.accumulate)
    with pytest.raises(ConnectionError):
        train(objective_of(bottleneck), source, config, tmp_path / "cut")
    torch.manual_seed(12345)  # a new process starts with other random numbers
    resumed = objective_of(bottleneck, seed=1 if fails_at > 2 else 0)
    history = train(resumed, Interrupted(), config, tmp_path / "cut", resume=True)

    assert_same(last_state(whole_folder), last_state(tmp_path / "cut"))
    assert_same(whole.state_dict(), resumed.state_dict())
    assert history_of(tmp_path / "cut") == history_of(whole_folder)
    assert [row["step"] for row in history] == list(range(1, 9))
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(history))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_loop as t

def picture():
    os.kill(os.getpid(), signal.SIGKILL)

config = t.replace(t.CONFIG, picture_every=5)
t.train(t.objective_of(t.GAUSSIAN), t.Interrupted(), config, Path(sys.argv[2]), picture=picture)
"""


def test_a_killed_run_resumes_exactly(tmp_path, start_process):
    config = replace(CONFIG, picture_every=5)
    killed = start_process(KILLED, Path(__file__).parent, tmp_path / "cut")
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    # What a kill during a save or a log line leaves behind.
    (tmp_path / "cut" / "checkpoints" / ".step_0000006.partial").mkdir()
    (tmp_path / "cut" / "checkpoints" / ".step_0000099.partial").mkdir()
    with (tmp_path / "cut" / "history.jsonl").open("a") as file:
        file.write('{"step": 6, "sec')
    black = np.zeros((4, 6, 3), np.uint8)
    whole, resumed = objective_of(GAUSSIAN), objective_of(GAUSSIAN, seed=1)
    train(whole, Interrupted(), config, tmp_path / "whole", picture=lambda: black)
    train(resumed, Interrupted(), config, tmp_path / "cut", picture=lambda: black, resume=True)
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "cut"))
    assert_same(whole.state_dict(), resumed.state_dict())
    assert history_of(tmp_path / "cut") == history_of(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, second = objective_of(VQ), objective_of(VQ, seed=1)
    history = train(first, Interrupted(), CONFIG, tmp_path / "run")
    assert train(second, Interrupted(fails_at=0), CONFIG, tmp_path / "run", resume=True) == history
    assert_same(first.state_dict(), second.state_dict())
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_0000006", "step_0000008"]


def test_a_run_is_a_function_of_its_recipe(tmp_path):
    results = []
    for name in ("a", "b"):
        objective = objective_of(GAUSSIAN)
        torch.randn(len(results))
        train(objective, Interrupted(), replace(CONFIG, steps=2), tmp_path / name)
        results.append(objective.state_dict())
    assert_same(*results)


def test_another_run_is_not_overwritten(tmp_path):
    recipe = {"model": {"net": {"channels": 8}}, "name": "a"}
    config = replace(CONFIG, steps=1)
    train(objective_of(FSQ), Interrupted(), config, tmp_path / "run", recipe=recipe)
    before = last_state(tmp_path / "run")
    with pytest.raises(ValueError, match=r"already: resume.*another"):
        train(objective_of(FSQ), Interrupted(), config, tmp_path / "run", recipe=recipe)
    other = {"model": {"net": {"channels": 16}}, "name": "a"}
    with pytest.raises(ValueError, match=r"differ.*\(8 there, 16 here\),.*\(1"):
        train(objective_of(FSQ), Interrupted(), replace(config, steps=2), tmp_path / "run", recipe=other, resume=True)
    assert_same(before, last_state(tmp_path / "run"))


# ---------------------------------------------------------------------------------------------------- optimisation


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_one_large_batch(tmp_path, accumulate):
    histories, states = [], []
    for parts in (1, accumulate):
        folder, config = tmp_path / str(parts), replace(CONFIG, accumulate=parts, steps=2, learning_rate=1e-4)
        histories.append(train(objective_of(FSQ), Interrupted(), config, folder))
        states.append(last_state(folder))
    for name, value in states[0].items():
        # The averages that Adam keeps are those of the gradients, without its division by nearly zero.
        atol = 1e-6 if name.startswith("optimizer") else 2e-5
        torch.testing.assert_close(states[1][name], value, atol=atol, rtol=0, msg=name)
    for one, other in zip(*histories, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)


def test_it_learns_and_ends_with_the_averaged_weights(tmp_path):
    objective = objective_of(FSQ)
    history = train(objective, Interrupted(), replace(CONFIG, steps=60, checkpoint_every=60), tmp_path / "run")
    assert history[-1]["loss"] < 0.85 * history[0]["loss"]
    state = load_file(tmp_path / "run" / "checkpoints" / "step_0000060" / "ema.safetensors")
    own = load_file(tmp_path / "run" / "checkpoints" / "step_0000060" / "model.safetensors")
    assert_same(objective.state_dict(), {name: state[f"shadow.{name}"] for name in objective.state_dict()})
    assert any(not torch.equal(own[name], value) for name, value in objective.state_dict().items())


def test_learning_rate_warms_up_and_falls(tmp_path):
    config = TrainConfig(steps=100, batch_size=1, learning_rate=1.0, warmup=9)
    assert [round(config.learning_rate_at(step), 3) for step in (0, 4)] == [0.1, 0.498]
    assert config.learning_rate_at(50) == pytest.approx(0.505)
    assert 0.01 <= config.learning_rate_at(99) < 0.011
    assert replace(config, schedule="constant").learning_rate_at(99) == 1.0
    history = train(Poisoned(99, ""), Interrupted(), CONFIG, tmp_path / "run")
    assert [row["lr"] for row in history] == [CONFIG.learning_rate_at(step) for step in range(8)]


def test_mixed_precision_after_full_precision(tmp_path):
    train(objective_of(VQ), Interrupted(), replace(CONFIG, steps=1), tmp_path / "full")
    objective = objective_of(VQ)
    history = train(objective, Interrupted(), replace(CONFIG, steps=2, precision="bf16"), tmp_path / "half")
    assert len(history) == 2
    assert {value.dtype for value in objective.state_dict().values()} == {torch.float32}
    recon, _ = objective.autoencoder(Interrupted().batch([]).new_zeros(1, 3, 16, 16))
    assert recon.dtype == torch.float32


class Poisoned(nn.Module, Objective):
    """A linear model whose named term becomes NaN at a step; `gradient` keeps the loss finite but not its gradient."""

    def __init__(self, step, where):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.left, self.where = step, where

    def forward(self, image):
        self.left -= 1
        bad = self.left < 0
        clean = (self.weight * image.mean((0, 2, 3))).square().sum()
        if bad and self.where == "gradient":
            clean = clean + torch.sqrt(self.weight[0] * 0)
        kl = self.weight.sum() * (float("nan") if bad and self.where == "kl" else 0.1)
        return Losses({"l1": clean, "kl": kl}, {})


@pytest.mark.parametrize(("where", "name"), [("kl", "kl"), ("gradient", "gradient norm")])
def test_nan_stops_the_run_before_the_weights(tmp_path, where, name):
    healthy, poisoned = Poisoned(99, where), Poisoned(5, where)
    train(healthy, Interrupted(), replace(CONFIG, steps=5, schedule="constant"), tmp_path / "healthy")
    config = replace(CONFIG, schedule="constant")
    with pytest.raises(DivergenceError, match=rf"step 6: {name} is not finite; .* checkpoint: \S*step_0000003\. Lower"):
        train(poisoned, Interrupted(), config, tmp_path / "run")
    own = load_file(tmp_path / "healthy" / "checkpoints" / "step_0000005" / "model.safetensors")
    assert torch.equal(poisoned.weight.detach(), own["weight"])
    assert [row["step"] for row in history_of(tmp_path / "run")] == [1, 2, 3, 4, 5]
    cured = Poisoned(99, where)
    train(cured, Interrupted(), config, tmp_path / "run", resume=True)
    assert bool(torch.isfinite(cured.weight).all())


@pytest.mark.parametrize("at", [4, 5])
def test_nan_in_any_micro_batch_stops_the_step(tmp_path, at):
    """Losses are looked at when the gradients of a step are complete: of the third step, batches 4 and 5."""
    config = replace(CONFIG, accumulate=2, schedule="constant")
    healthy, poisoned = Poisoned(99, "kl"), Poisoned(at, "kl")
    train(healthy, Interrupted(), replace(config, steps=2), tmp_path / "healthy")
    with pytest.raises(DivergenceError, match=r"step 3: kl is not finite"):
        train(poisoned, Interrupted(), config, tmp_path / "run")
    own = load_file(tmp_path / "healthy" / "checkpoints" / "step_0000002" / "model.safetensors")
    assert torch.equal(poisoned.weight.detach(), own["weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"accumulate": 0}, "accumulate=0: expected at least 1"),
        ({"log_every": 0}, "log_every=0: expected at least 1"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1: expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: expected a positive number"),
        ({"clip": -1.0}, "clip=-1.0: expected a positive number"),
        ({"warmup": -1}, "warmup=-1: expected at least 0"),
        ({"seed": -1}, "seed=-1: expected at least 0"),
        ({"workers": -1}, "workers=-1: expected at least 0"),
        ({"picture_every": -1}, "picture_every=-1: expected at least 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1: expected at least 0"),
        ({"ema": 1.0}, r"ema=1.0: expected a decay in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\): expected two decays in \[0, 1\)"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size=6: not a multiple of accumulate=4"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


# -------------------------------------------------------------------------------------------- pictures and progress


def test_pictures_show_the_averaged_weights(tmp_path):
    objective, seen = objective_of(VQ), []

    def picture():
        assert not objective.training
        seen.append({name: value.clone() for name, value in objective.state_dict().items()})
        return np.full((4, 6, 3), 10 * len(seen), np.uint8)

    config = replace(CONFIG, picture_every=4, checkpoint_every=4, tracker="tensorboard")
    train(objective, Interrupted(), config, tmp_path / "run", picture=picture)
    files = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [file.name for file in files] == ["step_0000004.png", "step_0000008.png"]
    assert np.array_equal(np.asarray(Image.open(files[1])), np.full((4, 6, 3), 20))
    state = load_file(tmp_path / "run" / "checkpoints" / "step_0000004" / "ema.safetensors")
    assert_same(seen[0], {name: state[f"shadow.{name}"] for name in seen[0]})
    plain = objective_of(VQ)
    train(plain, Interrupted(), config, tmp_path / "plain")
    assert_same(plain.state_dict(), objective.state_dict())
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    folder = tmp_path / ("run [bold]" + "x" * 100)
    train(Poisoned(99, ""), Interrupted(), replace(CONFIG, steps=40, log_every=2), folder)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split()[3] for line in lines] == [f"{step}/40" for step in range(4, 41, 4)]
    assert all(line.startswith(f"{folder.name}: step") and line.endswith("s left") for line in lines)
    assert all(" loss 0." in line and "images/s" in line for line in lines)


# ---------------------------------------------------------------------------------------------- several processes

TWO_PROCESSES = """
import os, sys
from pathlib import Path
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
import test_loop as t

folder = Path(sys.argv[2])
objective = t.objective_of(t.FSQ)
config = t.replace(t.CONFIG, steps=5)
try:
    t.train(objective, t.Interrupted(), t.replace(config, batch_size=3), folder / "odd")
except ValueError as error:
    (folder / f"odd-{os.environ['RANK']}.txt").write_text(str(error))
where = "kl" if os.environ["RANK"] == "1" else "nowhere"
try:
    t.train(t.Poisoned(2, where), t.Interrupted(), config, folder / "nan")
except t.DivergenceError as error:
    (folder / f"nan-{os.environ['RANK']}.txt").write_text(str(error))
try:
    t.train(objective, t.Interrupted(fails_at=4), config, folder / "run")
except ConnectionError:
    history = t.train(objective, t.Interrupted(), config, folder / "run", resume=True)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5]
    save_file(objective.state_dict(), folder / f"{os.environ['RANK']}.safetensors")
"""


def test_two_processes_equal_one(tmp_path, run_two_processes):
    run_two_processes(TWO_PROCESSES, Path(__file__).parent, tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert_same(first, second)
    alone = objective_of(FSQ)
    history = train(alone, Interrupted(), replace(CONFIG, steps=5), tmp_path / "alone")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=0, msg=name)
    for ours, theirs in zip(history_of(tmp_path / "alone"), history_of(tmp_path / "run"), strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
    assert len(history) == 5
    assert "step 3: a term of another process is not finite" in (tmp_path / "nan-0.txt").read_text()
    assert "step 3: kl is not finite" in (tmp_path / "nan-1.txt").read_text()
    assert "batch_size=3: not a multiple of 2 processes x accumulate=1" in (tmp_path / "odd-0.txt").read_text()
