"""Jobs side by side: order, limit, shares of the cores, failure, and progress read from a file being written."""

import json
import os
import signal
import sys
import time

import pytest

from recipes.jobs import queue as jobs, threads
from recipes.jobs.queue import Job, JobFailed, chains, run_jobs, share

# Stands in for `tmm`: NAME SECONDS [STATUS]; notes its beginning and end, so that overlaps can be counted, and every
# number of threads that it is given.
FAKE = """
import os, sys, time, types
from pathlib import Path
from recipes.jobs.threads import THREADS_FILE, follow
name, seconds, status = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
note = lambda what: Path(f"{name}.{what}").write_text(str(time.monotonic()))
given = lambda number: Path(f"{name}.given").open("a").write(f"{number} ")
sys.modules["torch"] = types.SimpleNamespace(set_num_threads=given)
follow(Path(os.environ[THREADS_FILE]))
note("began")
Path(f"{name}.pid").write_text(str(os.getpid()))
print("x" * 3000, f"{name} says", os.environ["OMP_NUM_THREADS"], flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end:
    time.sleep(0.01)
note("ended")
print("the last word of", name, file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "_TMM", (sys.executable, str(script)))
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.02)
    return tmp_path


def job(name, seconds=0.2, *more, needs=(), work=1.0):
    return Job(name=name, arguments=(name, str(seconds), *map(str, more)), needs=needs, work=work)


def times(folder, name):
    return tuple(float((folder / f"{name}.{what}").read_text()) for what in ("began", "ended"))


def test_jobs_wait_for_what_they_need(fake):
    chain = [job("c", needs=("b",)), job("b", needs=("a",)), job("a")]
    seconds = run_jobs(chain, fake / "logs")
    assert times(fake, "a")[1] < times(fake, "b")[0]
    assert times(fake, "b")[1] < times(fake, "c")[0]
    assert set(seconds) == {"a", "b", "c"}
    assert all(taken > 0.2 for taken in seconds.values())
    assert "the last word of b" in (fake / "logs" / "b.log").read_text()


@pytest.mark.parametrize("cores", [1, 2])
def test_no_more_run_at_once_than_there_are_cores(fake, cores):
    names = "abcde"
    run_jobs([job(name, 0.3 * cores) for name in names], fake / "logs", cores=cores)
    spans = [times(fake, name) for name in names]
    together = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(together) == cores
    started = sorted(names, key=lambda name: times(fake, name)[0])
    assert set(started[:cores]) == set(names[:cores])  # equal work: the given order, as far as that can be seen
    assert cores > 1 or started == list(names)


def test_the_longest_chain_of_work_starts_first(fake):
    waiting = [job("short", 0), job("long", 0, work=3), job("first", 0), job("last", 0, needs=("first",), work=5)]
    assert chains(waiting) == {"short": 1, "long": 3, "first": 6, "last": 5}
    run_jobs(waiting, fake / "logs", cores=1)
    assert sorted(["short", "long", "first", "last"], key=lambda name: times(fake, name)[0]) == [
        "first", "last", "long", "short",
    ]  # fmt: skip


def test_cores_go_to_whoever_has_most_left_to_do():
    assert share({}, 4) == {}
    assert share({"a": 1.0}, 6) == {"a": 6}
    assert share({"a": 5.0, "b": 1.0}, 2) == {"a": 1, "b": 1}
    assert share({"a": 5.0, "b": 1.0}, 4) == {"a": 3, "b": 1}
    assert share({"a": 2.0, "b": 2.0}, 4) == {"a": 2, "b": 2}
    assert share({"a": 1.0, "b": 1.0, "c": 1.0}, 2) == {"a": 1, "b": 1, "c": 1}


def test_who_is_left_alone_gets_the_cores_that_become_free(fake):
    run_jobs([job("short", 0.5), job("long", 3)], fake / "logs", cores=2)
    assert (fake / "short.given").read_text().split() == ["1"]
    assert (fake / "long.given").read_text().split() == ["1", "2"]
    assert "long says 1" in (fake / "logs" / "long.log").read_text()
    run_jobs([job("alone", 0)], fake / "logs", cores=6)
    assert "alone says 6" in (fake / "logs" / "alone.log").read_text()


def test_a_number_of_threads_that_comes_before_torch_waits_for_it(tmp_path, monkeypatch):
    file, given = tmp_path / "threads", []
    file.write_text("3")
    monkeypatch.setitem(sys.modules, "torch", None)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGALRM)}
    try:
        threads.follow(file)
        assert given == []
        monkeypatch.setitem(sys.modules, "torch", type("Torch", (), {"set_num_threads": given.append}))
        until = time.monotonic() + 5
        while not given and time.monotonic() < until:
            time.sleep(0.02)
        assert given == [3]
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_failure_ends_the_others_and_shows_the_end_of_its_log(fake):
    began = time.monotonic()
    with pytest.raises(JobFailed) as error:
        run_jobs([job("slow", 20), job("bad", 0.5, 3), job("later", 0, needs=("bad",))], fake / "logs", cores=2)
    message = str(error.value)
    assert message.startswith(f"bad failed; the end of {fake / 'logs' / 'bad.log'}:\n")
    assert message.endswith("the last word of bad\n")
    assert len(message) < 2200
    assert time.monotonic() - began < 15
    with pytest.raises(ProcessLookupError):
        os.kill(int((fake / "slow.pid").read_text()), 0)
    assert not (fake / "later.began").exists()


def test_jobs_that_wait_for_each_other_are_refused(fake):
    with pytest.raises(ValueError, match="a, b: wait for each other"):
        run_jobs([job("a", needs=("b",)), job("b", needs=("a",))], fake / "logs")
    with pytest.raises(ValueError, match="need b"):
        run_jobs([job("a", needs=("b",))], fake / "logs")


def test_progress_reads_whole_lines_only(tmp_path):
    history = tmp_path / "history.jsonl"
    queue = jobs._Queue([Job(name="a", arguments=(), history=history, steps=20)], tmp_path, 1)
    assert (queue.state("a"), queue._steps_done("a")) == ("running", 0)
    first, second = (json.dumps({"step": s, "loss": 1 / s, "images_per_second": 30.0}) + "\n" for s in (5, 10))
    seen = []
    for written in range(len(first + second) + 1):
        history.write_text((first + second)[:written])
        seen.append(queue._steps_done("a"))
    assert seen == [0] * len(first) + [5] * len(second) + [10]
    assert queue.state("a") == "10/20  loss 0.100  30 img/s"
    assert jobs._Queue([job("b")], tmp_path, 1).state("b") == "running"
