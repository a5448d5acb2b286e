"""The studies are programs in a folder and no package."""

import importlib
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch):
    """Function name -> module of a study."""
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module
