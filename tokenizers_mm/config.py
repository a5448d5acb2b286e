"""Text becomes configuration here and nowhere else: unknown keys refused, every error one line with path and remedy."""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML whose only booleans are true and false, as in version 1.2: `precision: no` is a word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_BOOLEAN = re.compile("(?:true|True|TRUE|false|False|FALSE)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEAN, list("tTfF"))


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the path, the value and the remedy."""


def parse(schema: type[T], data: Any, where: str) -> T:
    """Check plain data (from YAML or JSON) against a dataclass and build it.

    where  what the data came from, e.g. the file name; it starts every error message
    """
    try:
        return _adapter(schema).validate_python(data)  # type: ignore[arg-type, no-any-return]
    except ValidationError as error:
        raise ConfigError(_one_line(error, schema, where)) from None


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    """Made once a schema: that takes a tenth of a second for a recipe."""
    return TypeAdapter(_forbidding(schema))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; `ConfigError` if the file is missing, not YAML, or not a mapping."""
    try:
        data = _read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(data).__name__}")
    return data


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `path.to.key=value` assignments (values read as YAML) to nested mappings; the result is a new mapping."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment}: expected path.to.key=value")
        try:
            value = _read(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: not valid YAML: {' '.join(str(error).split())}") from error
        data = _assigned(data, path.split("."), value, assignment)
    return data


def _read(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _assigned(data: dict[str, Any], keys: list[str], value: Any, assignment: str) -> dict[str, Any]:
    if len(keys) == 1:
        return data | {keys[0]: value}
    inner = data.get(keys[0], {})
    if not isinstance(inner, dict):
        raise ConfigError(f"--set {assignment}: {keys[0]} holds {inner!r}, which has no keys")
    return data | {keys[0]: _assigned(inner, keys[1:], value, assignment)}


def _forbidding(schema: Any) -> Any:
    """Give a plain dataclass, and those inside it, the rule that unknown keys are errors."""
    for member in _dataclasses_in(schema):
        if "__pydantic_config__" not in vars(member):
            member.__pydantic_config__ = ConfigDict(extra="forbid")
            for hint in get_type_hints(member).values():
                _forbidding(hint)
    return schema


def _dataclasses_in(hint: Any) -> list[Any]:
    """The dataclass itself, or those of a union."""
    if hasattr(hint, "__dataclass_fields__"):
        return [hint]
    return [member for part in get_args(hint) for member in _dataclasses_in(part)]


def _one_line(error: ValidationError, schema: Any, where: str) -> str:
    first = error.errors()[0]
    path = ".".join([where, *(str(part) for part in _written(schema, first["loc"]))])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(schema, first["loc"][:-1])
        close = _nearest(str(first["loc"][-1]), known)
        return f"{path} = {first['input']!r}: unknown key{close}; known: {', '.join(known)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{path}: missing; add it"
    if first["type"] == "value_error":  # our own words, which name argument and value
        return f"{path}: {first['ctx']['error']}"
    message = first["msg"]
    return f"{path} = {first['input']!r}: {message[0].lower()}{message[1:]}"


def _written(schema: Any, location: tuple[int | str, ...]) -> list[int | str]:
    """The location as it is written: without the kinds of union members, which are no keys."""
    parts: list[int | str] = []
    for part in location:
        members = _dataclasses_in(schema)
        tagged = [m for m in members if getattr(m, "kind", None) == part]
        if len(members) > 1 and tagged:
            schema = tagged[0]
            continue
        parts.append(part)
        schema = get_type_hints(members[0]).get(str(part)) if members else None
    return parts


def _known_keys(schema: Any, path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        members = _dataclasses_in(schema)
        tagged = [m for m in members if getattr(m, "kind", None) == part]  # a union's errors name the member's kind
        schema = tagged[0] if tagged else get_type_hints(members[0])[str(part)]
    return sorted(get_type_hints(_dataclasses_in(schema)[0] if _dataclasses_in(schema) else schema))


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
