"""Files of annotations, read as they are: captions.jsonl, captions.csv, classes.json, a .txt beside an image.

Every error names the file, and the line where there is one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers_mm.runtime import is_text

__all__ = [
    "CAPTIONS",
    "CLASSES",
    "CSV",
    "Table",
    "read_caption",
    "read_classes",
    "read_table",
    "read_words",
]

CAPTIONS, CSV, CLASSES = "captions.jsonl", "captions.csv", "classes.json"
Table = dict[str, dict[str, Any]]  # image -> what is said about it


def read_table(root: Path, path: Path, keys: Sequence[str]) -> Table:
    """Annotations of a .csv or .jsonl file; `ValueError` for a line that names none of the images `keys` of `root`."""
    notes = _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path)
    known = set(keys)
    strangers = [key for key in notes if key not in known]
    if strangers:
        raise ValueError(f"{path}: {len(strangers)} lines name no image under {root}; the first is {strangers[0]!r}")
    return notes


def _read_jsonl(path: Path) -> Table:
    """Lines of a captions.jsonl by image; `ValueError` names the line that is wrong."""
    notes: Table = {}
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            note = json.loads(line)
            file, caption, label = note["file"], note.get("caption"), note.get("label")
            good = isinstance(file, str) and (caption is None or is_text(caption)) and type(label) in (int, type(None))
        except (ValueError, KeyError, TypeError, AttributeError):
            good = False
        if not good:
            raise ValueError(
                f'{path} line {number}: expected {{"file": path, "caption": text, "label": integer}}, got {line[:80]!r}'
            )
        if file in notes:
            raise ValueError(f"{path} line {number}: {file!r} has a line already")
        notes[file] = note
    return notes


def _read_csv(path: Path) -> Table:
    lines = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True)
    columns = set(lines.fieldnames or ())
    if "file" not in columns or not columns & {"caption", "label"}:
        raise ValueError(f"{path} line 1: expected the columns file, and caption or label; found {sorted(columns)}")
    notes: Table = {}
    try:
        for row in lines:
            if None in row:
                raise ValueError(
                    f"{path} line {lines.line_num}: more fields than the {len(columns)} columns; put texts with commas "
                    "in double quotes"
                )
            if row["file"] in notes:
                raise ValueError(f"{path} line {lines.line_num}: {row['file']!r} has a line already")
            notes[row["file"]] = {name: row[name] for name in ("caption", "label") if row.get(name) is not None}
    except csv.Error as error:
        raise ValueError(f"{path} line {lines.line_num}: {error}") from error
    return notes


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a classes.json."""
    try:
        names = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f'{path}: expected a list of names: ["cat", "dog"]')
    return tuple(names)


def read_caption(path: Path) -> str:
    """A caption that must be there, and not empty."""
    if not path.is_file():
        raise ValueError(f"{path}: missing, while other images have one: write a caption there, or remove the image")
    caption = read_words(path)
    if not caption:
        raise ValueError(f"{path}: the caption is empty; write one, or remove the image")
    return caption


def read_words(path: Path) -> str:
    """A text with single spaces, empty where the file is."""
    return " ".join(_read(path).split())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets begin with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
