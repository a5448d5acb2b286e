"""A training run: its folder, its device, its data, and everything that is written of it.

Whatever one process cannot write stops all of them, and nothing is left half-written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object, parse_flag_from_env, set_seed
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tokenizers_mm.data import DataPosition, Fetched, Source, Unreadable, account, micro_batches, unreadable_of
from tokenizers_mm.runtime import (
    WriteError,
    computes_bfloat16,
    describe_precision,
    resolve_precision,
    whole_file,
)
from tokenizers_mm.runtime.writing import writing
from tokenizers_mm.training.checkpoint import TrainState
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.folder import RunFolder
from tokenizers_mm.training.progress import Reporter
from tokenizers_mm.training.step import Trainer

__all__ = ["Picture", "TrainingRun"]

Picture = Callable[[], NDArray[np.uint8]]


class TrainingRun:
    """One run: its folder and device, what is trained, and what the loop does besides a step."""

    def __init__(
        self,
        objective: nn.Module,
        source: Source,
        config: TrainConfig,
        folder: Path,
        unreadable: Unreadable | None = None,
    ) -> None:
        self.source, self.config, self.folder = source, config, RunFolder(folder)
        # accelerate keeps the precision of the first run for the whole process; ours is that of each run.
        AcceleratorState._reset_state()
        device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
        self.precision = resolve_precision(config.precision, device)
        self.accelerator = Accelerator(
            mixed_precision=self.precision,
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(folder),
        )
        parts = self.accelerator.num_processes * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size={config.batch_size}: not a multiple of {self.accelerator.num_processes} processes x "
                f"accumulate={config.accumulate}"
            )
        self.micro_size = config.batch_size // parts
        self.trainer = Trainer(objective, config, self.accelerator, self.folder.last_good)
        self.state = TrainState(self.trainer.parts(), self.trainer.ema, self.accelerator.scaler)
        main = self.accelerator.is_main_process
        self.unreadable = unreadable_of(source, warn=main) if unreadable is None else unreadable
        self.reporter = Reporter(folder, config.steps, config.batch_size, main)
        self.done = 0

    def open(self, identity: dict[str, Any], resume: bool) -> int:
        """Prepare the folder; return the step to start from."""
        before = self.folder.refuse_other(identity, resume)
        checkpoints = self.folder.checkpoints() if resume else []
        self.done = self.folder.steps(checkpoints[-1]) if checkpoints else 0
        self.accelerator.wait_for_everyone()  # the record is read everywhere before it is written
        self._write(lambda: self.folder.write_record(identity, self.precision))
        self._say_precision(before)
        if checkpoints:
            self.state.read(checkpoints[-1], self.accelerator.process_index, self.config.seed + self.done)
        else:
            set_seed(self.config.seed, device_specific=True)
        self._write(lambda: self._start_records(self.done), everywhere=True)
        self.trainer.main.model.train()
        return self.done

    def _start_records(self, start: int) -> None:
        self.reporter.start_at(start)
        if self.accelerator.is_main_process:
            self.folder.list_unreadable(self.unreadable.errors)
        if self.config.tracker != "none":
            self.accelerator.init_trackers("tokenizers-mm")

    def _say_precision(self, before: str | None) -> None:
        """What is computed in where that was left open, and what is slow or changes."""
        if not self.accelerator.is_main_process:
            return
        asked, device = self.config.precision, self.accelerator.device
        if asked == "auto":
            self.reporter.say(describe_precision(asked, device))
        elif asked == "bf16" and device.type == "cpu" and not computes_bfloat16(device):
            warnings.warn(
                "precision=bf16: this processor emulates bfloat16, 8 to 12 times slower than float32; auto avoids that",
                stacklevel=4,
            )
        if before not in (None, self.precision):
            warnings.warn(
                f"{self.folder.path}: trained with precision {before} so far, goes on with {self.precision}: that is "
                f"what {asked} means on this {device.type}",
                stacklevel=4,
            )

    def batches(self, start: int) -> Generator[list[Any]]:
        """This process's micro-batches of every step from `start` on."""
        position = DataPosition(
            seed=self.config.seed,
            steps=self.config.steps,
            batch_size=self.config.batch_size,
            accumulate=self.config.accumulate,
            micro_size=self.micro_size,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        stream = micro_batches(self.source, position, start, workers=self.config.workers)
        for _ in range(start, self.config.steps):
            fetched = [next(stream) for _ in range(self.config.accumulate)]
            self._account(fetched)
            yield [part.batch.to(self.accelerator.device) for part in fetched]

    def _account(self, fetched: list[Fetched]) -> None:
        """Count, name and list the images that could not be read, those of all processes in every process."""
        if not self.largest(sum(len(part.refused) for part in fetched)):
            return
        try:
            for refused in gather_object([part.refused for part in fetched]):
                account(refused, self.unreadable)
        finally:
            self._write(lambda: self.folder.list_unreadable(self.unreadable.errors))

    def log(self, done: int, losses: Mapping[str, Tensor]) -> None:
        """Write one line of history: losses averaged over processes, speed, learning rate."""
        names = sorted(losses)
        values = self.accelerator.reduce(torch.stack([losses[name].float() for name in names]), reduction="mean")
        row = dict(zip(names, values.tolist(), strict=True)) | {"lr": self.config.learning_rate_at(done - 1)}

        def write() -> None:
            self.reporter.log(done, row)
            if self.config.tracker != "none":
                self.accelerator.log(row, step=done)

        self._write(write, everywhere=True)

    def save_picture(self, done: int, picture: Picture) -> None:
        """Save what `picture` shows of the EMA weights."""
        pixels = np.empty(0, np.uint8)
        if self.accelerator.is_main_process:
            objective = self.trainer.main.module
            with self.trainer.ema.swapped(objective):
                objective.eval()
                pixels = picture()
                objective.train()

        def write() -> None:
            path = self.folder.path / "pictures" / f"step_{done:07d}.png"
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as partial:
                Image.fromarray(pixels).save(partial, "PNG")
            if self.config.tracker != "none":
                tracker = self.accelerator.get_tracker(self.config.tracker)
                if hasattr(tracker, "log_images"):
                    layout = {"dataformats": "NHWC"} if self.config.tracker == "tensorboard" else {}
                    tracker.log_images({"picture": pixels[None]}, step=done, **layout)

        self._write(write)

    def save(self, done: int) -> None:
        """Write a checkpoint under a temporary name, then give it its own: a reader never sees half of one."""
        main, partial = self.accelerator.is_main_process, self.folder.partial(done)

        def write() -> None:
            with writing(self.folder.checkpoint(done)):
                self.state.write_random(partial, self.accelerator.process_index)
                if main:
                    self.state.write(partial, done)

        try:
            self._write(lambda: self.folder.begin(done))
            self._write(write, everywhere=True)
            self._write(lambda: self.folder.publish(done))
        except BaseException:
            if main:
                self.folder.discard(done)
            raise

    def close(self) -> None:
        """End the trackers. The group of processes stays, for a run that follows: the other half of a fused one."""
        with writing(self.folder.path):
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _write(self, action: Callable[[], None], *, everywhere: bool = False) -> None:
        """Let the main process write, or all; where one of them cannot, all stop with a `WriteError`."""
        failed: WriteError | None = None
        if everywhere or self.accelerator.is_main_process:
            try:
                with writing(self.folder.path):
                    action()
            except WriteError as error:
                failed = error
        if self.largest(int(failed is not None)):
            failed = failed or WriteError(self.folder.path, "by another process", "see what that says")
            raise failed.then(f"; training stopped after step {self.done}. {self.folder.last_good()}") from failed

    def largest(self, number: int) -> int:
        """The largest of a number of every process; all of them wait for it."""
        if self.accelerator.num_processes == 1:
            return number
        gathered = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(torch.as_tensor(gathered).max())
