"""The number of threads of a job, which may change while it runs.

The queue writes the number into the file that THREADS_FILE names, then sends SIGUSR1.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

THREADS_FILE = "TOKENIZERS_MM_THREADS_FILE"
_RETRY_SECONDS = 1


def follow(path: Path) -> None:
    """Use as many threads as the file says, now and whenever SIGUSR1 arrives; main thread only.

    OpenMP keeps the number per thread, so it has to be set from the thread that computes: a handler runs there.
    """

    def use(*_: Any) -> None:
        set_threads = getattr(sys.modules.get("torch"), "set_num_threads", None)
        if set_threads is None:  # not imported yet, or not as a whole
            signal.alarm(_RETRY_SECONDS)
        else:
            set_threads(int(path.read_text()))

    signal.signal(signal.SIGALRM, use)
    signal.signal(signal.SIGUSR1, use)
    use()
