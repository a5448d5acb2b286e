"""Faces of packages: where their names are, and what importing them costs."""

import ast
import importlib
from pathlib import Path

import pytest

import tokenizers_mm
from tokenizers_mm.lazy import face

ROOT = Path(__file__).parent.parent.parent
FACES = sorted(path.parent for name in ("tokenizers_mm", "recipes") for path in (ROOT / name).rglob("__init__.pyi"))


def dotted(folder):
    return ".".join(folder.relative_to(ROOT).parts)


def listed(folder):
    """Name -> home, as the stub says it; every line must be of the one form that is read."""
    homes = {}
    for line in ast.parse((folder / "__init__.pyi").read_text()).body:
        assert isinstance(line, ast.ImportFrom)
        assert all(alias.name == alias.asname for alias in line.names)
        homes |= {alias.name: line.module for alias in line.names}
    return homes


def modules(folder):
    return {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}


def test_there_are_faces():
    assert len(FACES) > 15
    assert {ROOT / "tokenizers_mm", ROOT / "recipes", ROOT / "tokenizers_mm" / "checkpoints"} <= set(FACES)


@pytest.mark.parametrize("folder", FACES, ids=dotted)
def test_every_name_is_the_one_of_its_home_and_none_is_a_module(folder):
    package, homes = importlib.import_module(dotted(folder)), listed(folder)
    assert homes.keys() & modules(folder) == set()
    assert package.__all__ == sorted(homes)
    for name, home in homes.items():
        assert getattr(package, name) is getattr(importlib.import_module(home), name)
        assert name in dir(package)


def test_a_face_reads_its_stub(tmp_path, monkeypatch):
    package = tmp_path / "faced"
    package.mkdir()
    (package / "a.py").write_text("f = 1\n")
    (package / "__init__.pyi").write_text("from faced.a import f as f\n")
    (package / "__init__.py").write_text(
        "from tokenizers_mm.lazy import face\n__getattr__, __dir__, __all__ = face(__name__, __file__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    faced = importlib.import_module("faced")
    assert (faced.__all__, vars(faced).get("f"), faced.f, vars(faced).get("f")) == (["f"], None, 1, 1)
    assert face("faced", str(package / "__init__.py"))[2] == ["f"]
    with pytest.raises(AttributeError, match="'faced' has no attribute 'g'"):
        _ = faced.g


def test_unknown_names_are_refused_and_modules_are_still_found():
    with pytest.raises(AttributeError, match=r"'tokenizers_mm' has no attribute 'laod'"):
        _ = tokenizers_mm.laod
    with pytest.raises(ImportError, match="laod"):
        exec("from tokenizers_mm import laod", {})
    names = {}
    exec("from tokenizers_mm import geometry, Tokens", names)
    assert (names["geometry"].__name__, names["Tokens"].__module__) == ("tokenizers_mm.geometry", "tokenizers_mm.api")
