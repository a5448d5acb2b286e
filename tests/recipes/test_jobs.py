"""Jobs side by side: order, limit, failure, and progress read from a file that is being written."""

import json
import os
import sys
import time

import pytest

from recipes.demo import jobs
from recipes.demo.jobs import Job, JobFailed, run_jobs

# Stands in for `tmm`: NAME SECONDS [STATUS]; notes its beginning and end, so that overlaps can be counted.
FAKE = """
import os, sys, time
from pathlib import Path
name, seconds, status = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
note = lambda what: Path(f"{name}.{what}").write_text(str(time.monotonic()))
note("began")
Path(f"{name}.pid").write_text(str(os.getpid()))
print("x" * 3000, f"{name} says", os.environ["OMP_NUM_THREADS"], flush=True)
time.sleep(seconds)
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


def job(name, seconds=0.2, *more, needs=()):
    return Job(name=name, arguments=(name, str(seconds), *map(str, more)), needs=needs)


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


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_run_at_once_than_there_are_workers(fake, workers):
    names = "abcde"
    run_jobs([job(name, 0.3 * workers) for name in names], fake / "logs", workers=workers)
    spans = [times(fake, name) for name in names]
    together = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(together) == workers
    started = sorted(names, key=lambda name: times(fake, name)[0])
    assert set(started[:workers]) == set(names[:workers])  # in the given order, as far as that can be seen
    assert workers > 1 or started == list(names)


def test_each_job_has_its_share_of_the_cores(fake, monkeypatch):
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 6)
    run_jobs([job("a", 0)], fake / "logs", workers=2)
    assert "a says 3" in (fake / "logs" / "a.log").read_text()


def test_a_failure_ends_the_others_and_shows_the_end_of_its_log(fake):
    began = time.monotonic()
    with pytest.raises(JobFailed) as error:
        run_jobs([job("slow", 20), job("bad", 0.5, 3), job("later", 0, needs=("bad",))], fake / "logs")
    message = str(error.value)
    assert message.startswith(f"bad failed; the end of {fake / 'logs' / 'bad.log'}:\n")
    assert message.endswith("the last word of bad\n")
    assert len(message) < 2200
    assert time.monotonic() - began < 15
    with pytest.raises(ProcessLookupError):
        os.kill(int((fake / "slow.pid").read_text()), 0)
    assert not (fake / "later.began").exists()


def test_jobs_that_wait_for_each_other_are_refused(fake):
    with pytest.raises(AssertionError, match="jobs wait for each other"):
        run_jobs([job("a", needs=("b",)), job("b", needs=("a",))], fake / "logs")


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
