"""Faces of packages: what they list, where it is, and what importing them costs."""

import ast
import importlib
from pathlib import Path

import pytest

import tokenizers_mm

ROOT = Path(__file__).parent.parent.parent
FACES = ["tokenizers_mm", "tokenizers_mm.checkpoints", "recipes"]


def listed(text):
    """What a face's source says: names of __all__, table of homes, table of what type checkers import."""
    tree = ast.parse(text)
    values = {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
    }
    typed = {
        alias.asname or alias.name: line.module
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for line in node.body
        for alias in line.names
    }
    return values["__all__"], values["_HOMES"], typed


def disagreements(text, modules=()):
    public, homes, typed = listed(text)
    found = [f"{name}: {typed.get(name)}" for name in homes if typed.get(name) != homes[name]]
    found += [f"{name} is in one list only" for name in {*public} ^ {*homes} | {*typed} ^ {*homes}]
    return found + [f"{name} is a module" for name in homes if name in modules]


@pytest.mark.parametrize("package", FACES)
def test_table_list_and_types_agree(package):
    folder = ROOT / package.replace(".", "/")
    modules = [path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(modules) > 5
    assert disagreements((folder / "__init__.py").read_text(), modules) == []


@pytest.mark.parametrize("package", FACES)
def test_every_name_is_the_one_of_its_home(package):
    face = importlib.import_module(package)
    for name, home in listed(Path(face.__file__).read_text())[1].items():
        assert getattr(face, name) is getattr(importlib.import_module(home), name)
        assert name in dir(face)


GOOD = """
if TYPE_CHECKING:
    from p.a import f, g
__all__ = ["f", "g"]
_HOMES = {"f": "p.a", "g": "p.a"}
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('"f": "p.a", ', "", "f is in one list only"),
        ('["f", "g"]', '["g"]', "f is in one list only"),
        ("import f, g", "import g", "f: None"),
        ('"f": "p.a"', '"f": "p.b"', "f: p.a"),
    ],
)
def test_the_checker_finds_planted_disagreements(old, new, found):
    assert disagreements(GOOD) == []
    assert old in GOOD
    assert found in disagreements(GOOD.replace(old, new))
    assert disagreements(GOOD, ["g"]) == ["g is a module"]


def test_unknown_names_are_refused_and_modules_are_still_found():
    with pytest.raises(AttributeError, match=r"'tokenizers_mm' has no attribute 'laod'"):
        _ = tokenizers_mm.laod
    with pytest.raises(ImportError, match="laod"):
        exec("from tokenizers_mm import laod", {})
    names = {}
    exec("from tokenizers_mm import ema, Tokens", names)
    assert (names["ema"].__name__, names["Tokens"].__module__) == ("tokenizers_mm.ema", "tokenizers_mm.api")
