"""A queue of commands run side by side: the cores are shared by what is left to do, with a progress bar for each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from recipes.jobs.threads import THREADS_FILE

_TMM = (sys.executable, "-m", "recipes.jobs.process", "recipes.cli")
_POLL_SECONDS = 0.3
_PLAIN_SECONDS = 30
_STOP_SECONDS = 20


class JobFailed(ValueError):
    """A job ended with an error; the message holds the end of what it printed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One `tmm` command.

    arguments  after `tmm`; needs  names of jobs that must have finished before
    work       how much there is to do, in any unit that all jobs share (seconds of one core of some machine)
    history    the history.jsonl it writes while it runs and the steps it will take, for the progress bar
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    work: float = 1.0
    history: Path | None = None
    steps: int = 1


def run_jobs(jobs: Sequence[Job], log_folder: Path, *, cores: int | None = None) -> dict[str, float]:
    """Run all jobs, at most one a core at once; returns seconds by name.

    What may start, starts in the order of what waits for it: the longest chain of work first. While there are more
    cores than jobs that can run, those with most left to do get several.

    cores  default: all there are. Raises `JobFailed` as soon as one fails; the others are ended.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    queue = _Queue(jobs, log_folder, cores or os.cpu_count() or 1)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:14}"),
        BarColumn(),
        TextColumn("{task.fields[state]:34}"),
        TimeElapsedColumn(),
    )
    last_line = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {job.name: progress.add_task(job.name, total=job.steps, state="waiting", start=False) for job in jobs}
        try:
            while queue.advance(bars, progress):
                if not console.is_terminal and time.monotonic() - last_line > _PLAIN_SECONDS:
                    console.print("   ".join(f"{name}: {queue.state(name)}" for name in queue.running))
                    last_line = time.monotonic()
                time.sleep(_POLL_SECONDS)
        finally:
            queue.stop()
    return queue.seconds


def chains(jobs: Sequence[Job]) -> dict[str, float]:
    """Work of every job and of the longest chain of jobs that wait for it, by name.

    Raises `ValueError` for jobs that wait for each other, or for one that is not there.
    """
    found: dict[str, float] = {}
    waiting = list(jobs)
    while waiting:
        ends = [job for job in waiting if not any(job.name in other.needs for other in waiting)]
        strangers = sorted({need for job in waiting for need in job.needs} - {job.name for job in jobs})
        if not ends or strangers:
            raise ValueError(
                f"jobs {', '.join(job.name for job in waiting)}: "
                + (f"need {', '.join(strangers)}, which is not there" if strangers else "wait for each other")
            )
        for job in ends:
            after = [found[other.name] for other in jobs if job.name in other.needs]
            found[job.name] = job.work + max(after, default=0.0)
            waiting.remove(job)
    return found


def share(left: Mapping[str, float], cores: int) -> dict[str, int]:
    """Cores of every job: one each, and each of the others to whoever has most left to do for each of its own."""
    shares = dict.fromkeys(left, 1)
    for _ in range(cores - len(left) if left else 0):
        most = max(left, key=lambda name: left[name] / shares[name])
        shares[most] += 1
    return shares


class _Queue:
    """Jobs that wait, run and are done."""

    def __init__(self, jobs: Sequence[Job], log_folder: Path, cores: int) -> None:
        self.jobs = {job.name: job for job in jobs}
        first = chains(jobs)
        self.waiting, self.log_folder = sorted(self.jobs, key=lambda name: -first[name]), log_folder
        self.running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self.threads: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.cores = cores

    def advance(self, bars: dict[str, TaskID], progress: Progress) -> bool:
        """Collect what has ended, start what can start, share the cores; False when everything is done."""
        for name, (process, began) in list(self.running.items()):
            progress.update(bars[name], completed=self._steps_done(name), state=self.state(name))
            if process.poll() is not None:
                del self.running[name]
                self.seconds[name] = time.monotonic() - began
                self._require_success(name, process.returncode)
                progress.update(bars[name], completed=self.jobs[name].steps, state="done")
                progress.stop_task(bars[name])
        ready = [name for name in self.waiting if all(need in self.seconds for need in self.jobs[name].needs)]
        starting = ready[: self.cores - len(self.running)]
        shares = share({name: self._left(name) for name in [*self.running, *starting]}, self.cores)
        for name in starting:
            self.waiting.remove(name)
            self._start(name, shares[name])
            progress.start_task(bars[name])
        for name in self.running:
            self._give(name, shares[name])
        return bool(self.running)

    def state(self, name: str) -> str:
        """What the progress bar says: step, loss and speed of the last line of history."""
        row = self._last_row(name)
        if row is None:
            return "running"
        return (
            f"{row['step']:.0f}/{self.jobs[name].steps}  loss {row['loss']:.3f}  {row['images_per_second']:.0f} img/s"
        )

    def stop(self) -> None:
        """End what still runs: asked first, so that it may save, then not asked any more."""
        for process, _ in self.running.values():
            process.terminate()
        for process, _ in self.running.values():
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, threads: int) -> None:
        command, file = [*_TMM, *self.jobs[name].arguments], self.log_folder / f"{name}.threads"
        file.write_text(str(threads))
        environment = os.environ | {
            THREADS_FILE: str(file),
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        # Ignored until the process listens, which a child inherits: else an early signal would end it.
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            with (self.log_folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        finally:
            signal.signal(signal.SIGUSR1, before)
        self.running[name], self.threads[name] = (process, time.monotonic()), threads

    def _give(self, name: str, threads: int) -> None:
        """Tell a running job how many threads it may use."""
        if self.threads[name] != threads:
            partial = self.log_folder / f".{name}.threads"
            partial.write_text(str(threads))
            os.replace(partial, self.log_folder / f"{name}.threads")
            self.running[name][0].send_signal(signal.SIGUSR1)
            self.threads[name] = threads

    def _require_success(self, name: str, status: int) -> None:
        if status:
            log = self.log_folder / f"{name}.log"
            raise JobFailed(f"{name} failed; the end of {log}:\n{log.read_text()[-2000:]}")

    def _left(self, name: str) -> float:
        job = self.jobs[name]
        return job.work * (1 - self._steps_done(name) / job.steps)

    def _last_row(self, name: str) -> dict[str, float] | None:
        history = self.jobs[name].history
        if history is None or not history.exists():
            return None
        lines = history.read_text().split("\n")[:-1]  # whole lines only: the last may be in the making
        row: dict[str, float] | None = json.loads(lines[-1]) if lines else None
        return row

    def _steps_done(self, name: str) -> float:
        row = self._last_row(name)
        return 0 if row is None else row["step"]
