"""Options as text gives them, checked against the types that a constructor asks for."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin


def fitted(value: Any, hint: Any, where: str) -> Any:
    """The value as the type hint asks for it; `ValueError` that names `where` if it cannot be that.

    YAML 1.1 reads 1e-3 as text, and JSON does not tell 2 from 2.0: text of a number is that number, and a whole number
    is whole however it is written. Handles int, float, bool, literals, sequences and unions of them.
    """
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return _first_of(value, inside, hint, where)
    if origin is Literal or hint is type(None):
        if value in (inside or (None,)):
            return value
    elif hint is bool:
        if value in (False, True):
            return bool(value)
    elif origin is Sequence:
        if isinstance(value, list | tuple):
            return type(value)(fitted(item, inside[0], f"{where}[{i}]") for i, item in enumerate(value))
    else:
        number = _number(value, hint)
        if number is not None:
            return number
    raise ValueError(f"{where} = {value!r}: expected {_said(hint)}")


def _first_of(value: Any, hints: tuple[Any, ...], hint: Any, where: str) -> Any:
    """Of a union, the member whose own complaint is the most precise says what is wrong inside a sequence."""
    for member in hints:
        if get_origin(member) is Sequence and isinstance(value, list | tuple):
            return fitted(value, member, where)
    for member in hints:
        try:
            return fitted(value, member, where)
        except ValueError:
            continue
    raise ValueError(f"{where} = {value!r}: expected {_said(hint)}")


def _number(value: Any, hint: type[int] | type[float]) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(value) if hint is int and isinstance(value, int | str) else _whole(float(value), hint)
    except ValueError:
        return None


def _whole(value: float, hint: type[int] | type[float]) -> int | float | None:
    if hint is float:
        return value
    return int(value) if value.is_integer() else None


def _said(hint: Any) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return " or ".join(_said(member) for member in inside)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside))
    if origin is Sequence:
        return f"a list, each item {_said(inside[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))
