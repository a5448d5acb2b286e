"""What every test can rely on: no network, one thread, the same random numbers."""

import importlib
import multiprocessing
import os
import random
import resource
import socket
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes that tests start

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

_ARGUMENTS = """
import os, sys
os.environ.update({environment!r})
sys.argv[1:] = {arguments!r}
"""


@pytest.fixture(autouse=True)
def _same_random_numbers():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def plain(monkeypatch):
    """The module tests/plain/plain_tokenizers.py, which `plain_tokenizers:NAME` finds as well while the test runs."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "plain")
    return importlib.import_module("plain_tokenizers")


@pytest.fixture(scope="session")
def small_disk():
    """A block in which no file grows beyond so many bytes: the system refuses to write on, as on a full disk."""

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="session")
def start_process():
    """Code, arguments and environment to a process of its own, started: one that need not spend seconds on imports.

    It is forked from a process that has imported everything and done nothing else, not from this one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "recipes.programs.train", "recipes.programs.evaluate", "pytest"])

    def start(code, *arguments, **environment):
        prelude = _ARGUMENTS.format(environment=environment, arguments=[str(argument) for argument in arguments])
        process = context.Process(target=exec, args=(prelude + code, {"__name__": "__main__"}))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def run_two_processes(start_process):
    """Run code in two processes that find each other as those of torchrun do; both must end well."""

    def run(code, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        common["ACCELERATE_USE_CPU"] = "1"
        running = [start_process(code, *arguments, **common, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
        for process in running:
            process.join(300)
        assert [process.exitcode for process in running] == [0, 0]

    return run
