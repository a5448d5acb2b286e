"""A job's own process: runs a module as a program, with the number of threads that the queue says.

`python -m recipes.jobs.process MODULE ARGUMENTS...`
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from recipes.jobs.threads import THREADS_FILE, follow

if __name__ == "__main__":
    follow(Path(os.environ[THREADS_FILE]))
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
