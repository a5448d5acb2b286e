"""What may happen to a training run: signals, a full disk, images that cannot be read, other hardware."""

import json
import os
import signal
import threading
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tokenizers_mm.data.folder import ImageFolder
from tokenizers_mm.data.unreadable import TooManyUnreadable
from tokenizers_mm.losses.terms import Losses
from tokenizers_mm.runtime.interrupt import Interrupted, StopSignals, termination_raises
from tokenizers_mm.runtime.writing import WriteError
from tokenizers_mm.training import loop, run as training_run
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.loop import train
from tokenizers_mm.training.protocols import Objective

CONFIG = TrainConfig(
    steps=8, batch_size=4, warmup=2, ema=0.9, log_every=1, checkpoint_every=3, tracker="none", learning_rate=1e-2
)


class Noisy(nn.Module, Objective):
    """A linear model whose loss draws random numbers; `at` is called at every step with its number."""

    def __init__(self, at=lambda step: None):
        super().__init__()
        self.weight, self.at, self.calls = nn.Parameter(torch.ones(3)), at, 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, image):
        self.calls += 1
        self.at(self.calls)
        self.seen += image.mean()
        loss = (self.weight * image.mean((0, 2, 3)) + torch.randn(3)).square().sum()
        return Losses({"l2": loss}, {})


class Kill:
    """Send a signal to this process at a step, so many times."""

    def __init__(self, step, signum, times=1):
        self.step, self.signum, self.times = step, signum, times

    def __call__(self, step):
        if step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven images: epochs end within batches."""
    path = tmp_path_factory.mktemp("images")
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"{number:02}.png")
    return path


@pytest.fixture
def broken(folder, tmp_path):
    """The same images, one of which is broken."""
    copy = tmp_path / "broken"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "04.png").write_bytes((folder / "04.png").read_bytes()[:99])
    return copy


def history_of(run):
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def last_state(run):
    """Bytes of everything in the newest checkpoint."""
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    return {file.name: file.read_bytes() for file in newest.iterdir()}


def leftovers(run):
    return [path for path in run.rglob(".*") if path.name.endswith(".partial")]


# -------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("signum", "step", "workers", "status"), [("SIGINT", 1, 0, 130), ("SIGINT", 5, 1, 130), ("SIGTERM", 8, 0, 143)]
)
def test_a_signal_ends_the_step_with_a_checkpoint_and_nothing_is_lost(folder, tmp_path, signum, step, workers, status):
    source, config = ImageFolder(folder, 16), replace(CONFIG, workers=workers, log_every=2)
    whole = Noisy()
    train(whole, source, config, tmp_path / "whole")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=rf"after step {step} of 8, saved as \S+/cut/\S+/step_000000{step}$") as stop:
        train(Noisy(Kill(step, signal.Signals[signum])), source, config, tmp_path / "cut")
    assert isinstance(stop.value, KeyboardInterrupt)
    assert (stop.value.signum, stop.value.status) == (signal.Signals[signum], status)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1].name == f"step_000000{step}"
    assert leftovers(tmp_path / "cut") == []
    torch.manual_seed(12345)
    resumed = Noisy()
    train(resumed, source, config, tmp_path / "cut", resume=True)
    assert resumed.calls == 8 - step
    assert torch.equal(whole.weight, resumed.weight)
    assert last_state(tmp_path / "cut") == last_state(tmp_path / "whole")
    assert history_of(tmp_path / "cut") == history_of(tmp_path / "whole")


def test_a_second_signal_ends_at_once(folder, tmp_path):
    objective = Noisy(Kill(5, signal.SIGINT, times=2))
    with pytest.raises(Interrupted, match="at once, by a second signal"):
        train(objective, ImageFolder(folder, 16), CONFIG, tmp_path / "run")
    assert objective.calls == 5
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_0000003"]


def test_a_second_signal_while_saving_leaves_nothing_half_written(folder, tmp_path, monkeypatch):
    write = training_run.TrainState.write

    def interrupted(self, path, step):
        write(self, path, step)
        os.kill(os.getpid(), signal.SIGINT)

    objective = Noisy(Kill(5, signal.SIGINT))
    source = ImageFolder(folder, 16)
    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainState, "write", interrupted)
        with pytest.raises(Interrupted, match="at once"):
            train(objective, source, replace(CONFIG, checkpoint_every=8), tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    train(Noisy(), source, replace(CONFIG, checkpoint_every=8), tmp_path / "run", resume=True)
    train(Noisy(), source, replace(CONFIG, checkpoint_every=8), tmp_path / "whole")
    assert last_state(tmp_path / "run") == last_state(tmp_path / "whole")


def test_signals_are_taken_in_the_main_thread_alone_and_given_back():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(_handler_inside()))
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert seen == [before]
    assert _handler_inside() != before
    assert signal.getsignal(signal.SIGTERM) == before


def _handler_inside():
    with StopSignals():
        return signal.getsignal(signal.SIGTERM)


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.asked == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)


def test_termination_elsewhere_raises_as_ctrl_c_does():
    with pytest.raises(Interrupted, match="at once, by SIGTERM") as stop, termination_raises():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.status == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ------------------------------------------------------------------------------------------------------ a full disk


def checkpoint_size(folder, tmp_path):
    """Bytes of the largest file of a checkpoint: the random numbers."""
    train(Noisy(), ImageFolder(folder, 16), replace(CONFIG, steps=1), tmp_path / "size")
    return max(len(content) for content in last_state(tmp_path / "size").values())


def test_a_full_disk_leaves_the_checkpoint_before(folder, tmp_path, small_disk):
    source, size = ImageFolder(folder, 16), checkpoint_size(folder, tmp_path)
    train(Noisy(), source, CONFIG, tmp_path / "whole")
    disk = small_disk(size // 2)

    def fill(step):
        if step == 5:
            disk.__enter__()

    try:
        with pytest.raises(WriteError) as error:
            train(Noisy(fill), source, CONFIG, tmp_path / "run")
    finally:
        disk.__exit__(None, None, None)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert str(error.value) == (
        f"{checkpoints / 'step_0000006'}: cannot be written (File too large); free space there; training stopped after "
        f"step 6. Last good checkpoint: {checkpoints / 'step_0000003'}"
    )
    assert [path.name for path in checkpoints.iterdir()] == ["step_0000003"]
    assert leftovers(tmp_path / "run") == []
    train(Noisy(), source, CONFIG, tmp_path / "run", resume=True)
    assert last_state(tmp_path / "run") == last_state(tmp_path / "whole")
    assert history_of(tmp_path / "run") == history_of(tmp_path / "whole")


LONG = replace(CONFIG, steps=100, checkpoint_every=100)


def test_a_full_disk_while_logging(folder, tmp_path, small_disk):
    expected = r"run/history\.jsonl: cannot be written \(File too large\); .* Last good checkpoint: none"
    with small_disk(4000), pytest.raises(WriteError, match=expected):
        train(Noisy(), ImageFolder(folder, 16), LONG, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))  # whole lines
    assert 10 < len(rows) < 100


@pytest.mark.parametrize("quiet", [True, False])
def test_a_full_disk_under_tensorboard_whose_thread_meets_it(folder, tmp_path, small_disk, monkeypatch, quiet):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(type(args.exc_value)))
    monkeypatch.setattr(training_run.Reporter, "log", lambda *_: None)  # else the history is full first
    if not quiet:
        monkeypatch.setattr(loop, "quiet_tracker_threads", nullcontext)
    with small_disk(4000), pytest.raises(WriteError, match=r"/run: cannot.*written \(File.*large\);"):
        train(Noisy(), ImageFolder(folder, 16), replace(LONG, tracker="tensorboard"), tmp_path / "run")
    assert seen == ([] if quiet else [OSError])  # what would be shown as a traceback


def test_a_folder_that_cannot_be_made(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/run: cannot.*written \(Not.*directory\).*0\. Last"):
        train(Noisy(), ImageFolder(folder, 16), CONFIG, tmp_path / "file" / "run")


# ------------------------------------------------------------------------------------------------ unreadable images


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_passed_over_named_and_listed_once(broken, tmp_path, workers):
    config = replace(CONFIG, steps=12, workers=workers)
    source = ImageFolder(broken, 16)
    with pytest.warns(UserWarning, match=r"04\.png: decode:.*image") as caught:
        train(Noisy(), source, replace(config, workers=0), tmp_path / "whole")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"04\.png"), pytest.raises(Interrupted):
        train(Noisy(Kill(5, signal.SIGINT)), source, config, tmp_path / "cut")
    with pytest.warns(UserWarning, match=r"04\.png"):
        train(Noisy(), source, config, tmp_path / "cut", resume=True)
    assert last_state(tmp_path / "cut") == last_state(tmp_path / "whole")
    for run in ("cut", "whole"):
        (line,) = (tmp_path / run / "unreadable.jsonl").read_text().splitlines()
        assert json.loads(line)["key"] == "04.png"
        assert json.loads(line)["stage"] == "decode"
        assert set(json.loads(line)) == {"key", "stage", "reason"}


def test_readable_folders_have_no_list(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(Noisy(), ImageFolder(folder, 16), CONFIG, tmp_path / "run")
    assert not (tmp_path / "run" / "unreadable.jsonl").exists()


@pytest.mark.filterwarnings("ignore:.*the next image is used:UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_files_end_a_run_that_goes_on_with_a_larger_share(broken, tmp_path, workers):
    (broken / "07.png").write_bytes(b"")
    config = replace(CONFIG, workers=workers)
    with pytest.raises(TooManyUnreadable, match=r"broken: 2.*11 images cannot.*data\.max_unreadable"):
        train(Noisy(), ImageFolder(broken, 16), config, tmp_path / "run", recipe={"data": {"max_unreadable": 0.1}})
    listed = [json.loads(line)["key"] for line in (tmp_path / "run" / "unreadable.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["04.png", "07.png"]
    source, recipe = ImageFolder(broken, 16, max_unreadable=0.2), {"data": {"max_unreadable": 0.2}}
    with pytest.raises(ValueError, match=r"they differ in recipe\.data\.path"):
        train(Noisy(), source, config, tmp_path / "run", recipe={"data": {"path": "x"}}, resume=True)
    train(Noisy(), source, config, tmp_path / "run", recipe=recipe, resume=True)
    train(Noisy(), source, config, tmp_path / "whole", recipe=recipe)
    assert last_state(tmp_path / "run") == last_state(tmp_path / "whole")
    assert len((tmp_path / "run" / "unreadable.jsonl").read_text().splitlines()) == 2


# -------------------------------------------------------------------------------------------------------- precision


@pytest.fixture
def bfloat16(monkeypatch):
    """Whether this machine computes in bfloat16, to be set."""

    def there(answer):
        for name in (
            "tokenizers_mm.runtime.precision.computes_bfloat16",
            "tokenizers_mm.training.run.computes_bfloat16",
        ):
            monkeypatch.setattr(name, lambda _: answer)

    return there


def record_of(run):
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize(("answer", "found", "name"), [(True, "bf16", "bfloat16"), (False, "no", "float32")])
def test_auto_is_resolved_said_and_recorded(folder, tmp_path, capsys, bfloat16, answer, found, name):
    bfloat16(answer)
    dtypes = set()

    class Typed(Noisy):
        def forward(self, image):
            dtypes.add((torch.ones(2, 2) @ self.weight[:2]).dtype)
            return super().forward(image)

    train(Typed(), ImageFolder(folder, 16), replace(CONFIG, precision="auto", steps=2), tmp_path / "run")
    assert dtypes == {torch.bfloat16 if answer else torch.float32}
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"precision: {name} (auto: this processor has {'' if answer else 'no '}bfloat16 arithmetic)"
    assert record_of(tmp_path / "run")["precision"] == found
    assert record_of(tmp_path / "run")["train"]["precision"] == "auto"


def test_a_run_resumed_where_auto_means_something_else_goes_on_and_says_so(folder, tmp_path, bfloat16):
    source, config = ImageFolder(folder, 16), replace(CONFIG, precision="auto")
    bfloat16(True)
    with pytest.raises(Interrupted):
        train(Noisy(Kill(4, signal.SIGINT)), source, config, tmp_path / "run")
    bfloat16(False)
    with pytest.warns(UserWarning, match=r"run: trained.*precision bf16.*no:"):
        history = train(Noisy(), source, config, tmp_path / "run", resume=True)
    assert len(history) == 8
    assert record_of(tmp_path / "run")["precision"] == "no"


def test_an_older_record_resumes_without_a_word(folder, tmp_path, bfloat16):
    bfloat16(True)
    source, run = ImageFolder(folder, 16), tmp_path / "run"
    train(Noisy(), source, CONFIG, run)
    record = record_of(run)
    del record["precision"]
    (run / "run.json").write_text(json.dumps(record))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(Noisy(), source, CONFIG, run, resume=True)
    assert record_of(run)["precision"] == "no"


def test_emulated_bfloat16_is_warned_of(folder, tmp_path, bfloat16, capsys):
    config = replace(CONFIG, precision="bf16", steps=1)
    bfloat16(False)
    with pytest.warns(UserWarning, match=r"precision=bf16:.*processor emulates bfloat16, 8.*12"):
        train(Noisy(), ImageFolder(folder, 16), config, tmp_path / "slow")
    bfloat16(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(Noisy(), ImageFolder(folder, 16), config, tmp_path / "fast")
    assert "precision" not in capsys.readouterr().err  # said only where it was left open


# ------------------------------------------------------------------------------------------------ several processes

TWO_PROCESSES = """
import os, resource, signal, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_stops as t

images, folder, second = Path(sys.argv[2]), Path(sys.argv[3]), os.environ["RANK"] == "1"
source, config = t.ImageFolder(images, 16), t.replace(t.CONFIG, checkpoint_every=4)

def outcome(name, objective, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            result = len(t.train(objective, options.pop("source", source), config, folder / name, **options))
        except (t.Interrupted, t.WriteError, t.TooManyUnreadable) as error:
            result = f"{type(error).__name__}: {error}"
    named = sorted({word for w in caught for word in str(w.message).split() if ".png" in word})
    (folder / f"{name}-{os.environ['RANK']}.json").write_text(t.json.dumps([result, named]))

def full(step):
    if second and step == 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))

outcome("stopped", t.Noisy(t.Kill(3 if second else 99, signal.SIGINT)))
outcome("stopped", t.Noisy(), resume=True)
outcome("many", t.Noisy(), source=t.ImageFolder(images, 16, max_unreadable=0))
outcome("full", t.Noisy(full))
"""


def test_several_processes_stop_together(broken, tmp_path, run_two_processes):
    run_two_processes(TWO_PROCESSES, Path(__file__).parent, broken, tmp_path)

    def outcomes(name):
        return zip(*(json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1)), strict=True)

    results, named = outcomes("stopped")  # resumed
    assert results == (8, 8)
    assert named == ([f"{broken / '04.png'}:"], [])  # one process names it, whichever meets it
    checkpoints = [path.name for path in sorted((tmp_path / "stopped" / "checkpoints").iterdir())]
    assert checkpoints == ["step_0000004", "step_0000008"]
    assert len((tmp_path / "stopped" / "unreadable.jsonl").read_text().splitlines()) == 1
    results, _ = outcomes("many")
    assert all(result.startswith("TooManyUnreadable") and "1 of 11 images" in result for result in results)
    (first, second), _ = outcomes("full")
    assert "run" not in first
    assert "cannot be written (by another process); see what that says; training stopped after step 8" in first
    assert "checkpoints/step_0000008: cannot be written (File too large); free space" in second
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["step_0000004"]
