"""Tokenizers by name: anything `load` takes, a run folder, or an object of one's own code.

`module:attribute` names such an object: the attribute (dotted, where it stands inside another) is a tokenizer, or a
class or function that makes one when called without arguments. Naming it imports the module, as `python -m module`
does, the current folder included; `tokenizers_mm.load` never imports anything.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenizers_mm.weights import TOWERS

if TYPE_CHECKING:
    from tokenizers_mm.api import Tokenizer

__all__ = ["TokenizerSource", "check_source", "names_an_object", "open_tokenizer"]

TokenizerSource: TypeAlias = "str | Path | Tokenizer"
_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_OBJECT = re.compile(rf"{_NAME}:{_NAME}")
_MAKERS = (type, functools.partial)


def open_tokenizer(source: TokenizerSource) -> Tokenizer:
    """The tokenizer that is meant, in eval mode where it was saved; a tokenizer itself is given back.

    source  anything that `tokenizers_mm.load` takes, run folders among it; `module:attribute`; or an object with the
            members of the `Tokenizer` protocol

    Raises `ValueError` where there is no such module or attribute, what it names is no tokenizer, or the user's code
    raises something (with its own message and place), and what `load` raises.
    """
    if not isinstance(source, str | Path):
        from tokenizers_mm.traits import check_tokenizer

        return check_tokenizer(source, "tokenizer")
    if names_an_object(source):
        return _imported(str(source))
    from tokenizers_mm.checkpoints import load

    return load(source)


def check_source(source: str | Path, *, file: str | None = None, revision: str | None = None) -> None:
    """Refuse what can be no tokenizer, as `open_tokenizer` does, before torch or anything of the user's is imported.

    file, revision  as `load` takes them
    """
    if not names_an_object(source):
        from tokenizers_mm.checkpoints import check_source as check

        return check(source, file=file, revision=revision)
    name = _module_name(str(source)).partition(".")[0]
    if name not in sys.modules and find_spec(name) is None and PathFinder.find_spec(name, [os.getcwd()]) is None:
        raise _no_module(str(source), name)


def names_an_object(source: TokenizerSource) -> bool:
    """Whether this is `module:attribute`: no file or folder of that name, and no network of a library (timm:...)."""
    text = str(source) if isinstance(source, str | Path) else ""
    return bool(_OBJECT.fullmatch(text)) and text.partition(":")[0] not in TOWERS and not Path(text).exists()


def _imported(source: str) -> Tokenizer:
    module, attribute = _module_name(source), source.partition(":")[2]
    found: Any = _module(source, module)
    for depth, part in enumerate(attribute.split(".")):
        if not hasattr(found, part):
            where = ".".join([module, *attribute.split(".")[:depth]])
            raise ValueError(f"{source}: {where} has no {part!r}; {_near(found, part)}")
        found = getattr(found, part)
    if isinstance(found, _MAKERS) or inspect.isroutine(found):
        found = _made(source, found)
    from tokenizers_mm.traits import check_tokenizer

    return check_tokenizer(found, source)


def _module_name(source: str) -> str:
    name = source.partition(":")[0]
    if name.endswith(".py"):
        raise ValueError(f"{source}: name the module as it is imported, {name.removesuffix('.py')}:...")
    return name


def _module(source: str, name: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for good: what the module imports later must be found too
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise _no_module(source, error.name) from error
        raise _raised(source, f"importing {name}", error) from error
    except Exception as error:
        raise _raised(source, f"importing {name}", error) from error


def _no_module(source: str, name: str) -> ValueError:
    return ValueError(
        f"{source}: there is no module {name!r} in the current folder {os.getcwd()}, nor installed; expected "
        "module:attribute, or a tokenizer as `tokenizers_mm.load` takes it"
    )


def _made(source: str, maker: Callable[[], Any]) -> Any:
    """What a class or function gives without arguments."""
    try:
        needed = inspect.signature(maker)
        needed.bind()
    except ValueError:  # of some built-in ones nothing is known
        pass
    except TypeError as error:
        raise ValueError(
            f"{source} is called without arguments, and it is {maker.__name__}{needed}: name a function without "
            "arguments that makes the tokenizer"
        ) from error
    try:
        return maker()
    except Exception as error:
        raise _raised(source, "making the tokenizer", error) from error


def _raised(source: str, doing: str, error: Exception) -> ValueError:
    """Of an error in the user's code: its own words, and the line where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, SyntaxError) else f" ({frame.filename}, line {frame.lineno})"
    return ValueError(f"{source}: {doing} failed with {type(error).__name__}: {error}{place}")


def _near(owner: Any, name: str) -> str:
    """What there is instead, in words."""
    public = [known for known in dir(owner) if not known.startswith("_")]
    near = difflib.get_close_matches(name, public, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"it has {', '.join(public[:8])}{', ...' if len(public) > 8 else ''}" if public else "it has no names"
