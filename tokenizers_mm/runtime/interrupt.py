"""Stop signals (Ctrl-C, SIGTERM) in training: noted, so that the step ends and is saved; a second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "StopSignals", "leave_signals_to_the_main_process", "termination_raises"]


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop by a signal; the message says what was saved.

    signum  SIGINT or SIGTERM; `status` is the exit status that shells expect of it, 130 or 143
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def status(self) -> int:
        """128 + number of the signal."""
        return 128 + self.signum


class StopSignals:
    """Inside the block the first SIGINT or SIGTERM is only noted in `asked` (0 before); a second raises `Interrupted`.

    Elsewhere than in the main thread, and for signals that the process ignores, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
                    self._before[signum] = signal.signal(signum, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.asked:
            raise Interrupted(signum, "at once, by a second signal")
        self.asked = signum


@contextmanager
def termination_raises() -> Iterator[None]:
    """Inside the block SIGTERM raises `Interrupted`, as Ctrl-C `KeyboardInterrupt`: what is open is cleaned up."""

    def stop(signum: int, _: FrameType | None) -> None:
        raise Interrupted(signum, "at once, by SIGTERM")

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave_signals_to_the_main_process(_: int = 0) -> None:
    """For the start of a worker process: signals sent to the whole group must not take the data from a last step.

    SIGINT is ignored, and the first SIGTERM: the second is from a main process that cannot end otherwise.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
