"""A job's own process: a `tmm` command that follows the number of threads it is told."""

from __future__ import annotations

import os
from pathlib import Path

from recipes.demo.threads import THREADS_FILE, follow

if __name__ == "__main__":
    follow(Path(os.environ[THREADS_FILE]))
    from recipes.cli import main

    main()
