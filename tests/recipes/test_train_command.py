"""`tmm train` from the shell's side: how it ends, what it says, and that its own words go on with the run."""

import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from recipes import cli
from recipes.commands.train import resume_command
from tokenizers_mm import fingerprint, load
from tokenizers_mm.data.sources import ImageArrays

TINY = [
    *("model.net.channels=8", "model.net.groups=4", "train.steps=4", "train.batch_size=4"),
    *("train.warmup=1", "train.log_every=1", "train.checkpoint_every=2", "train.picture_every=0", "train.tracker=none"),
]


def train_words(out, *more, data="data.count=12"):
    assigned = [word for assignment in (*TINY, data) for word in ("--set", assignment)]
    return ["train", "shapes_fsq", "--out", str(out), *assigned, *more]


def invoke(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def ended(monkeypatch, capsys, *words):
    """Exit status and lines on stderr of the console script itself, without those about progress."""
    monkeypatch.setattr(sys, "argv", ["tmm", *map(str, words)])
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)  # put back what main sets
    with pytest.raises(SystemExit) as error:
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    return error.value.code, [line for line in lines if ": step " not in line]


@pytest.fixture
def kill_at(monkeypatch):
    """Send a signal to this process in the n-th batch; one is fetched to start from, then one a step."""

    def prepare(number, signum):
        batch, calls = ImageArrays.batch, []

        def counted(self, draws):
            calls.append(draws)
            if len(calls) == number:
                os.kill(os.getpid(), signum)
            return batch(self, draws)

        monkeypatch.setattr(ImageArrays, "batch", counted)

    return prepare


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_that_it_prints_goes_on_with_the_run(tmp_path, kill_at, signum, status):
    whole, cut = tmp_path / "whole", tmp_path / "two words" / "cut"
    assert invoke(*train_words(whole)).exit_code == 0
    kill_at(5, signum)
    result = invoke(*train_words(cut))
    assert result.exit_code == status
    said = [line for line in result.stderr.splitlines() if "cut: step" not in line]
    assert len(said) == 1
    found = re.fullmatch(r"stopped: after step (\d) of 4, saved as (.*); go on with: (tmm .*)", said[0])
    step, checkpoint, command = found.groups()
    assert checkpoint == str(cut / "checkpoints" / f"step_000000{step}")
    assert Path(checkpoint).is_dir()
    assert not (cut / "tokenizer").exists()
    program, *words = shlex.split(command)
    assert (program, words) == ("tmm", train_words(cut, "--resume"))
    assert invoke(*words).exit_code == 0
    assert fingerprint(load(cut)) == fingerprint(load(whole))
    rows = [json.loads(line)["step"] for line in (cut / "history.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_before_training_nothing_is_written(tmp_path, kill_at, signum, status):
    kill_at(1, signum)
    result = invoke(*train_words(tmp_path / "run"))
    assert result.exit_code == status
    assert re.fullmatch(r"stopped: at once(, by SIGTERM)?; go on with: tmm train .* --resume\n", result.stderr)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_with_the_command(tmp_path, monkeypatch, capsys, small_disk):
    out = tmp_path / "run"
    with small_disk(60_000):
        status, lines = ended(monkeypatch, capsys, *train_words(out))
    command = shlex.join(["tmm", *train_words(out, "--resume")])
    assert status == 1
    assert lines == [
        f"error: {out}/checkpoints/step_0000002: cannot be written (File too large); free space there; training "
        f"stopped after step 2. Last good checkpoint: none yet; go on with: {command}"
    ]
    assert not list((out / "checkpoints").iterdir())
    assert invoke(*train_words(out, "--resume")).exit_code == 0
    # The finished tokenizer itself: the run is there, only its result is not.
    with small_disk(60_000):
        status, lines = ended(monkeypatch, capsys, *train_words(out, "--resume"))
    assert status == 1
    assert lines == [
        f"error: {out}/tokenizer: cannot be written (File too large); free space there; go on with: {command}"
    ]
    assert [path.name for path in out.iterdir() if "tokenizer" in path.name] == ["tokenizer"]


def test_unreadable_images_are_named_and_too_many_are_one_line(tmp_path, monkeypatch, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        Image.fromarray(np.full((32, 32, 3), 20 * number, np.uint8)).save(images / f"{number:02}.png")
    (images / "03.png").write_bytes(b"")
    data = f"data={{kind: folder, path: {images}, size: 32}}"
    with pytest.warns(UserWarning, match=r"03\.png: header"):
        result = invoke(*train_words(tmp_path / "run", data=data))
    assert result.exit_code == 0, result.stderr
    listed = [json.loads(line) for line in (tmp_path / "run" / "unreadable.jsonl").read_text().splitlines()]
    assert listed == [{"key": "03.png", "stage": "header", "reason": "the file is empty (0 bytes)"}]
    (images / "05.png").write_bytes(b"")
    status, lines = ended(monkeypatch, capsys, *train_words(tmp_path / "other", data=data))
    assert status == 1
    warned, error = lines[:-1], lines[-1]
    assert sorted(re.findall(r"0\d\.png", " ".join(warned))) == ["03.png", "05.png"]
    assert re.match(r"error: \S*images: 2 of 12 images cannot be read, .*; repair .* raise data\.max_unread", error)


@pytest.mark.parametrize("name", ["runs/no: such", "12", "null", "[a, b]"])
def test_what_to_start_from_and_to_freeze_is_taken_to_the_letter(tmp_path, monkeypatch, capsys, name):
    """An assignment is YAML, in which these would be another value or none."""
    out = tmp_path / "run"
    status, lines = ended(monkeypatch, capsys, "train", "shapes_fsq", "--out", out, "--from", name)
    assert status == 1
    assert re.match(rf"error: {re.escape(name)}(: | \(revision main\): )", lines[-1])
    _, assigned = ended(
        monkeypatch, capsys, *f"train shapes_fsq --out {out} --set model=null --set".split(), f"start={name}"
    )
    assert assigned != lines
    status, lines = ended(monkeypatch, capsys, *train_words(out, "--freeze", "encoder, decoder"))
    assert status == 1
    assert "freeze.0 = 'encoder, decoder'" in lines[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("shapes_fsq", Path("runs/a"), None, None, None), "tmm train shapes_fsq --out runs/a --resume"),
        (
            ("my recipe.yaml", Path("a"), ["train.steps=3", "model.image_size=[32, 64]"], None, None),
            "tmm train 'my recipe.yaml' --out a --set train.steps=3 --set 'model.image_size=[32, 64]' --resume",
        ),
        (
            ("vq", Path("a"), [], "runs/vq", ["encoder", "semantic"]),
            "tmm train vq --out a --from runs/vq --freeze encoder --freeze semantic --resume",
        ),
    ],
)
def test_the_command_is_what_a_shell_takes(monkeypatch, given, expected):
    assert resume_command(*given) == expected
    monkeypatch.setenv("WORLD_SIZE", "4")
    launched = expected.replace("tmm", "accelerate launch --num_processes 4 -m recipes.cli", 1)
    assert resume_command(*given) == launched
