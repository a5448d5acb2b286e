"""One training loop for everything that has named losses: tokenizers and generators alike.

Mixed precision, several processes and trackers are accelerate's business. What is ours: the position in the data is a
function of the step, so an interrupted run resumes exactly (model, EMA, optimiser, random state, data; of the
discriminator too where there is one); a non-finite loss stops the run before it touches the weights; a signal stops it
after the step, with a checkpoint; an image that cannot be read is replaced by the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from tokenizers_mm.data import Source, Unreadable
from tokenizers_mm.runtime import Interrupted, StopSignals, local_path, quiet_tracker_threads
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.run import Picture, TrainingRun

__all__ = ["train"]


def train(
    objective: nn.Module,
    source: Source,
    config: TrainConfig,
    folder: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    picture: Picture | None = None,
    unreadable: Unreadable | None = None,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Train `objective`, whose forward maps a batch of `source` to `Losses`, in place; it ends with the EMA weights.

    objective  a module with the members of `Objective`; its discriminator, where it has one, is trained beside it and
               stands in the checkpoints as well
    folder   receives run.json, checkpoints/, pictures/, history.jsonl, unreadable.jsonl and the tracker's files
    recipe   what the run is; stored, and a resumed run must have the same
    picture  called every `picture_every` steps with the EMA weights in place; returns uint8 [H, W, 3]
    unreadable  images of the source that were met before; without it those of this call are counted
    resume   go on from the last checkpoint (from the start if there is none)

    Returns the history: one mapping per logged step. Raises `DivergenceError`; `TooManyUnreadable`; `Interrupted` after
    SIGINT or SIGTERM, when the step is finished and saved (in the main thread; a second signal ends at once);
    `WriteError` where the folder cannot be written; and `ValueError` when it holds another run, or where the objective
    lacks a member, which the message names.
    """
    run = TrainingRun(objective, source, config, local_path(folder, "folder"), unreadable)
    with quiet_tracker_threads():
        start = run.open(json.loads(json.dumps({"train": asdict(config), "recipe": recipe or {}})), resume)
        if start < config.steps:
            _steps(run, start, picture)
            run.close()
    run.trainer.ema.copy_to(objective)
    return run.reporter.history


def _steps(run: TrainingRun, start: int, picture: Picture | None) -> None:
    config = run.config
    with run.reporter, StopSignals() as signals, closing(run.batches(start)) as stream:
        for step, batches in enumerate(stream, start):
            losses = run.trainer.step(step, batches)
            done = run.done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                run.log(done, losses)
            if picture and config.picture_every and done % config.picture_every == 0:
                run.save_picture(done, picture)
            signum = run.largest(signals.asked)
            if done % config.checkpoint_every == 0 or done == config.steps or signum:
                run.save(done)
            if signum:
                run.close()
                where = run.folder.checkpoint(done)
                raise Interrupted(signum, f"after step {done} of {config.steps}, saved as {where}")
