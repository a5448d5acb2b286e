"""Text becomes configuration here and nowhere else: unknown keys refused, every error one line with path and remedy."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the path, the value and the remedy."""


def parse(schema: type[T], data: Any, where: str) -> T:
    """Check plain data (from YAML or JSON) against a dataclass and build it.

    where  what the data came from, e.g. the file name; it starts every error message
    """
    try:
        return TypeAdapter(_forbidding(schema)).validate_python(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise ConfigError(_one_line(error, schema, where)) from None


def build(kinds: Mapping[str, type[T]], options: Mapping[str, Any], where: str) -> T:
    """Build `kinds[options["kind"]]` from the other options, checked against its constructor's signature."""
    kind = str(options.get("kind"))
    if kind not in kinds:
        raise ConfigError(f"{where}.kind = {kind}: expected one of {', '.join(kinds)}{_nearest(kind, kinds)}")
    cls = kinds[kind]
    hints = get_type_hints(cls.__init__)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(cls).parameters.items()
    }
    schema = create_model(cls.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    try:
        checked = schema.model_validate({name: value for name, value in options.items() if name != "kind"})
        return cls(**{name: getattr(checked, name) for name in fields})
    except ValidationError as error:
        raise ConfigError(_one_line(error, schema, where)) from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; `ConfigError` if the file is missing, not YAML, or not a mapping."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        data = _assigned(data, path.split("."), yaml.safe_load(text), assignment)
    return data


def _assigned(data: dict[str, Any], keys: list[str], value: Any, assignment: str) -> dict[str, Any]:
    if len(keys) == 1:
        return data | {keys[0]: value}
    inner = data.get(keys[0], {})
    if not isinstance(inner, dict):
        raise ConfigError(f"--set {assignment}: {keys[0]} holds {inner!r}, which has no keys")
    return data | {keys[0]: _assigned(inner, keys[1:], value, assignment)}


def _forbidding(schema: Any) -> Any:
    """Give a plain dataclass, and those nested in it, the rule that unknown keys are errors."""
    hints = get_type_hints(schema)
    for hint in hints.values():
        if hasattr(hint, "__dataclass_fields__"):
            _forbidding(hint)
    if not hasattr(schema, "__pydantic_config__"):
        schema.__pydantic_config__ = ConfigDict(extra="forbid")
    return schema


def _one_line(error: ValidationError, schema: Any, where: str) -> str:
    first = error.errors()[0]
    path = ".".join([where, *(str(part) for part in first["loc"])])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(schema, first["loc"][:-1])
        close = _nearest(str(first["loc"][-1]), known)
        return f"{path} = {first['input']!r}: unknown key{close}; known: {', '.join(known)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{path}: missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{path} = {first['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(schema: Any, path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        schema = get_type_hints(schema).get(str(part), schema)
    return sorted(get_type_hints(schema))


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
