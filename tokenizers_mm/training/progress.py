"""Progress on the terminal and on disk: a bar with loss, images/s and time left, and a line of JSON per logged step."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenizers_mm.runtime import append_text, write_text

# Without a terminal (a log file, CI) a bar is useless: print this many plain lines over a whole run instead.
_PLAIN_LINES = 10


class Reporter:
    """Shows and records the progress of a run; silent where `active` is false (all processes but the first)."""

    def __init__(self, folder: Path, steps: int, batch_size: int, active: bool = True) -> None:
        self.path, self.steps, self.batch_size, self.active = folder / "history.jsonl", steps, batch_size, active
        self.history: list[dict[str, float]] = []
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (active and self.console.is_terminal),
        )
        self.task = self.progress.add_task(folder.name, total=steps, state="")
        self.clock, self.seconds, self.last_step = time.perf_counter(), 0.0, 0

    def start_at(self, step: int) -> None:
        """Keep the history up to `step` (a resumed run repeats what came after it) and start the clock."""
        if self.path.exists():
            # Whole lines only: the one that a crash cut short belongs to a step that is repeated.
            lines = [json.loads(line) for line in self.path.read_text().split("\n")[:-1]]
            self.history = [line for line in lines if line["step"] <= step]
        if self.active:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.history))
        self.seconds = self.history[-1]["seconds"] if self.history else 0.0
        self.last_step, self.clock = step, time.perf_counter()
        self.progress.update(self.task, completed=step)

    def say(self, line: str) -> None:
        """One line about the run as a whole."""
        if self.active:
            print(line, file=sys.stderr, flush=True)

    def log(self, step: int, row: dict[str, float]) -> None:
        """Record one step."""
        now = time.perf_counter()
        elapsed, self.clock = now - self.clock, now
        self.seconds += elapsed
        rate = (step - self.last_step) * self.batch_size / max(elapsed, 1e-9)
        full = {"step": step, "seconds": round(self.seconds, 3), "images_per_second": round(rate, 1), **row}
        self.history.append(full)
        if not self.active:
            return
        append_text(self.path, json.dumps(full) + "\n")
        state = f"loss {row['loss']:.4f}  {rate:.0f} images/s"
        self.progress.update(self.task, completed=step, state=state)
        tenth = max(1, self.steps // _PLAIN_LINES)
        if not self.console.is_terminal and (step // tenth > self.last_step // tenth or step == self.steps):
            left = self.seconds / step * (self.steps - step)
            line = f"{self.path.parent.name}: step {step}/{self.steps}  {state}  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
        self.last_step = step

    def __enter__(self) -> Reporter:
        """Show the bar."""
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.progress.stop()
