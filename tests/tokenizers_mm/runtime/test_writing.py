"""Files appear whole or not at all; what cannot be written is one error with path, reason and remedy."""

import errno
import threading

import pytest
import torch
from safetensors.torch import load_file

from tokenizers_mm.runtime.writing import (
    WriteError,
    append_text,
    quiet_tracker_threads,
    whole_file,
    write_tensors,
    write_text,
    writing,
)

LARGE = 100_000


def test_a_file_that_cannot_be_written_is_not_there_and_an_older_one_stays(tmp_path, small_disk):
    path, state = tmp_path / "a.safetensors", {"a": torch.zeros(LARGE)}
    write_tensors(path, {"a": torch.ones(2)})
    text = tmp_path / "a.json"
    for write in (lambda: write_tensors(path, state), lambda: write_text(text, "x" * LARGE)):
        with (
            small_disk(LARGE // 2),
            pytest.raises(WriteError, match=r"a\.\w+: cannot be .*\(File too large\); free"),
        ):
            write()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert load_file(path)["a"].tolist() == [1, 1]
    write_tensors(path, state)
    write_text(text, "x" * LARGE)
    assert len(load_file(path)["a"]) == len(text.read_text()) == LARGE


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    shared = torch.arange(4.0)
    write_tensors(tmp_path / "a.safetensors", {"a": shared, "b": shared, "c": shared.reshape(2, 2).T})
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["a"], shared)
    assert torch.equal(found["b"], shared)
    assert found["c"].tolist() == [[0, 2], [1, 3]]


def test_what_cannot_be_added_whole_is_not_added(tmp_path, small_disk):
    path = tmp_path / "history.jsonl"
    append_text(path, "1\n")
    with small_disk(10_000), pytest.raises(WriteError, match=r"history\.jsonl: cannot be written"):
        append_text(path, "x" * LARGE)
    assert path.read_text() == "1\n"
    append_text(path, "2\n")
    assert path.read_text() == "1\n2\n"
    with pytest.raises(WriteError, match=r"none/a:.*written \(No.*directory\);.*writable"):
        append_text(tmp_path / "none" / "a", "1")


def test_errors_that_are_not_the_disks_pass_unchanged(tmp_path):
    def half(error):
        with whole_file(tmp_path / "a") as partial:
            partial.write_text("half")
            raise error

    for error in (ValueError("a"), ConnectionError("b"), KeyboardInterrupt("c")):
        with pytest.raises(type(error), match=str(error)) as caught:
            half(error)
        assert caught.value is error
        assert list(tmp_path.iterdir()) == []


def test_more_may_be_said_at_the_end():
    with pytest.raises(WriteError) as caught, writing("a"):
        raise OSError(errno.ENOSPC, "")
    assert str(caught.value.then("; b").then("; c")) == (
        "a: cannot be written (No space left on device); free space there; b; c"
    )


class Writer(threading.Thread):
    __module__ = "tensorboard.somewhere"

    def __init__(self, error):
        super().__init__()
        self.error = error

    def run(self):
        raise self.error


def test_only_a_trackers_writing_thread_is_quiet(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))
    full, other = OSError(errno.ENOSPC, "full"), ValueError("a bug")
    somebody = type("Thread", (Writer,), {"__module__": "somebody"})
    with quiet_tracker_threads():
        for thread in (Writer(full), Writer(other), somebody(full)):
            thread.start()
            thread.join()
    assert seen == [other, full]
    assert threading.excepthook(type("Args", (), {"exc_value": "restored"})) is None
    assert seen[-1] == "restored"
