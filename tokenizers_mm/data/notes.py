"""Captions and labels of an image folder, wherever they stand. Looked for in this order:

    captions.jsonl   lines {"file": "a/b.png", "caption": "a red cat", "label": 3}; caption and label are optional
    captions.csv     a header with `file`, and `caption` or `label` or both; labels are numbers, or names of classes
    b.txt            beside b.png, its caption
    sub-folders      cat/1.png: the first folder of the path is the class, and stands for the caption

Paths are relative to the folder. `classes.json`, a list of names, says what numbers mean. What is there must be there
for every image, and nothing else may be there: a caption without an image is as much a mistake as the reverse.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_mm.data.shards import is_text

__all__ = ["CAPTIONS", "CLASSES", "Notes", "read_jsonl", "read_notes"]

CAPTIONS, CSV, CLASSES = "captions.jsonl", "captions.csv", "classes.json"


@dataclass(frozen=True)
class Notes:
    """What a folder says about its images, in their order.

    captions  one per image, or () where there are none
    labels    one per image, an index into `classes`, or () where there are none
    """

    captions: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def read_notes(folder: str | Path, images: Sequence[Path]) -> Notes:
    """Captions and labels of these images of a folder.

    Raises `ValueError` naming the file where there are none, where they and the images do not pair, or where one is
    empty or cannot be read.
    """
    root = Path(folder)
    keys = [path.relative_to(root).as_posix() for path in images]
    texts = [path.with_suffix(".txt") for path in images]
    if (root / CAPTIONS).exists():
        return _from_table(root, root / CAPTIONS, keys, read_jsonl(root / CAPTIONS))
    if (root / CSV).exists():
        return _from_table(root, root / CSV, keys, _read_csv(root / CSV))
    if any(path.is_file() for path in texts):
        captions = tuple(_read_text(path) for path in texts)
        return Notes(captions, (), ())
    if all("/" in key for key in keys):
        names = [key.split("/", 1)[0] for key in keys]
        classes = tuple(sorted(set(names)))
        return Notes(tuple(_spoken(name) for name in names), tuple(classes.index(name) for name in names), classes)
    raise ValueError(
        f"{root}: no captions and no labels; add {CAPTIONS}, {CSV}, a .txt beside each image, or a sub-folder per class"
    )


def read_jsonl(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of a captions.jsonl by image; `ValueError` names the line that is wrong."""
    notes: dict[str, dict[str, Any]] = {}
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


def _read_csv(path: Path) -> dict[str, dict[str, Any]]:
    lines = csv.DictReader(_read(path).splitlines(), strict=True)
    columns = set(lines.fieldnames or ())
    if "file" not in columns or not columns & {"caption", "label"}:
        raise ValueError(f"{path} line 1: expected the columns file, and caption or label; found {sorted(columns)}")
    notes: dict[str, dict[str, Any]] = {}
    try:
        for row in lines:
            if row["file"] in notes:
                raise ValueError(f"{path} line {lines.line_num}: {row['file']!r} has a line already")
            notes[row["file"]] = {name: row[name] for name in ("caption", "label") if row.get(name) is not None}
    except csv.Error as error:
        raise ValueError(f"{path} line {lines.line_num}: {error}") from error
    return notes


def _from_table(root: Path, path: Path, keys: Sequence[str], notes: Mapping[str, Mapping[str, Any]]) -> Notes:
    strangers = sorted(set(notes) - set(keys))
    if strangers:
        raise ValueError(f"{path}: {len(strangers)} lines name no image under {root}; the first is {strangers[0]!r}")
    captions, labels = (_column(path, keys, notes, name) for name in ("caption", "label"))
    for key, caption in zip(keys, captions, strict=False):
        if not caption.strip():
            raise ValueError(f"{path}: the caption of {key!r} is empty; write one, or remove the image")
    if not captions and not labels:
        raise ValueError(f"{path}: holds neither captions nor labels")
    return Notes(tuple(captions), *_classes(root, path, labels))


def _column(path: Path, keys: Sequence[str], notes: Mapping[str, Mapping[str, Any]], name: str) -> list[Any]:
    """The values of every image, or [] where no image has one."""
    values = [notes.get(key, {}).get(name) for key in keys]
    without = [key for key, value in zip(keys, values, strict=True) if value is None]
    if len(without) == len(keys):
        return []
    if without:
        raise ValueError(
            f"{path}: {len(without)} of {len(keys)} images have no {name}; the first is {without[0]!r}: add it, or "
            "remove the image"
        )
    return values


def _classes(root: Path, path: Path, labels: Sequence[int | str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Labels as numbers, and the names of the classes."""
    if not labels:
        return (), ()
    known: tuple[str, ...] = ()
    if (root / CLASSES).exists():
        known = _read_classes(root / CLASSES)
    try:
        numbers = [int(label) for label in labels]
    except ValueError:
        names = [str(label).strip() for label in labels]
        known = known or tuple(sorted(set(names)))
        unknown = sorted(set(names) - set(known))
        if unknown or not all(names):
            raise ValueError(f"{path}: label {(unknown or [''])[0]!r} is not in {CLASSES}") from None
        numbers = [known.index(name) for name in names]
    known = known or tuple(str(number) for number in range(max(numbers) + 1))
    if min(numbers) < 0 or max(numbers) >= len(known):
        raise ValueError(
            f"{path}: labels span {min(numbers)}..{max(numbers)}: expected 0..{len(known) - 1} ({CLASSES})"
        )
    return tuple(numbers), known


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f'{path}: expected a list of names: ["cat", "dog"]')
    return tuple(names)


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: missing, while other images have one: write a caption there, or remove the image")
    caption = " ".join(_read(path).split())
    if not caption:
        raise ValueError(f"{path}: the caption is empty; write one, or remove the image")
    return caption


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")
