"""Run commands side by side, each on its share of the cores, with one progress bar a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_TMM = (sys.executable, "-m", "recipes.cli")
_POLL_SECONDS = 0.3
_PLAIN_SECONDS = 30


class JobFailed(ValueError):
    """A job ended with an error; the message holds the end of what it printed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One `tmm` command.

    arguments  after `tmm`; needs  names of jobs that must have finished before
    history    the history.jsonl it writes while it runs and the steps it will take, for the progress bar
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    history: Path | None = None
    steps: int = 1


def run_jobs(jobs: Sequence[Job], log_folder: Path, *, workers: int = 2) -> dict[str, float]:
    """Run all jobs, at most `workers` at once and in the given order where they may; returns seconds by name.

    Raises `JobFailed` as soon as one fails; the others are ended.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    queue = _Queue(jobs, log_folder, max(1, (os.cpu_count() or 1) // workers))
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
            while queue.advance(workers, bars, progress):
                if not console.is_terminal and time.monotonic() - last_line > _PLAIN_SECONDS:
                    console.print("   ".join(f"{name}: {queue.state(name)}" for name in queue.running))
                    last_line = time.monotonic()
                time.sleep(_POLL_SECONDS)
        finally:
            queue.stop()
    return queue.seconds


class _Queue:
    """Jobs that wait, run and are done."""

    def __init__(self, jobs: Sequence[Job], log_folder: Path, threads: int) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.waiting, self.log_folder = [job.name for job in jobs], log_folder
        self.running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self.seconds: dict[str, float] = {}
        # One thread per worker: two small networks side by side use two cores better than one network on both.
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}

    def advance(self, workers: int, bars: dict[str, TaskID], progress: Progress) -> bool:
        """Collect what has ended, start what can start; False when everything is done."""
        for name, (process, began) in list(self.running.items()):
            progress.update(bars[name], completed=self._steps_done(name), state=self.state(name))
            if process.poll() is not None:
                del self.running[name]
                self.seconds[name] = time.monotonic() - began
                self._require_success(name, process.returncode)
                progress.update(bars[name], completed=self.jobs[name].steps, state="done")
                progress.stop_task(bars[name])
        ready = [name for name in self.waiting if all(need in self.seconds for need in self.jobs[name].needs)]
        for name in ready[: workers - len(self.running)]:
            self.waiting.remove(name)
            self._start(name)
            progress.start_task(bars[name])
        assert self.running or not self.waiting, f"jobs wait for each other: {self.waiting}"
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
        """End what still runs."""
        for process, _ in self.running.values():
            process.terminate()
            process.wait()

    def _start(self, name: str) -> None:
        command = [*_TMM, *self.jobs[name].arguments]
        with (self.log_folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self.environment)
        self.running[name] = process, time.monotonic()

    def _require_success(self, name: str, status: int) -> None:
        if status:
            log = self.log_folder / f"{name}.log"
            raise JobFailed(f"{name} failed; the end of {log}:\n{log.read_text()[-2000:]}")

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
