"""Captions and labels of an image folder, wherever they stand. Looked for in this order:

    captions.jsonl   lines {"file": "a/b.png", "caption": "a red cat", "label": 3}; caption and label are optional
    captions.csv     a header with `file`, and `caption` or `label` or both; labels are numbers, or names of classes
    b.txt            beside b.png, its caption
    sub-folders      cat/1.png: the first folder of the path is the class, and stands for the caption

Paths are relative to the folder, the text is UTF-8. `classes.json`, a list of names, says what numbers mean.

    read_notes       for training: what is there must be there for every image
    read_some_notes  for encoding: an image may have none; names of sub-folders count where they are asked for
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["CAPTIONS", "CLASSES", "Notes", "SomeNotes", "read_notes", "read_some_notes"]

CAPTIONS, CSV, CLASSES = "captions.jsonl", "captions.csv", "classes.json"
_Table = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Notes:
    """What a folder says about its images, in their order.

    captions  one per image, or () where there are none
    labels    one per image, an index into `classes`, or () where there are none
    """

    captions: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class SomeNotes:
    """What a folder says about some of its images, each by its path relative to the folder.

    place    where it stands, in words; "" where nothing was found, or asked for
    classes  names of the labels, where the place knows them
    strays   .txt files that belong to no image
    folders  there are sub-folders, and their names were not asked for
    """

    captions: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    place: str = ""
    classes: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    folders: bool = False

    def lines(self, images: int) -> tuple[str, ...]:
        """What was found for so many images, in words."""
        if not self.place:
            hint = "; there are sub-folders: `--captions folders` takes their names as classes" if self.folders else ""
            return (f"captions: none found{hint}",)
        named = f": {len(self.classes)} classes" if self.classes else ""
        captions = f"captions: {sum(map(bool, self.captions.values()))} of {images} images, from {self.place}"
        labels = f"labels: {len(self.labels)} of {images} images, from {self.place}{named}"
        return (captions, labels) if self.labels else (captions,)


def read_notes(folder: str | Path, images: Sequence[Path]) -> Notes:
    """Captions and labels of these images of a folder.

    Raises `ValueError` naming the file where there are none, where they and the images do not pair, or where one is
    empty or cannot be read.
    """
    root = Path(folder)
    keys = [path.relative_to(root).as_posix() for path in images]
    table = _table_of(root)
    if table is not None:
        return _from_table(root, table, keys, _read_table(root, table, keys))
    texts = [path.with_suffix(".txt") for path in images]
    if any(path.is_file() for path in texts):
        return Notes(tuple(_read_caption(path) for path in texts), (), ())
    names = _folder_names(keys)
    if len(names) == len(keys):
        classes = tuple(sorted(set(names.values())))
        return Notes(tuple(map(_spoken, names.values())), tuple(_numbered(names.values(), classes)), classes)
    raise ValueError(
        f"{root}: no captions and no labels; add {CAPTIONS}, {CSV}, a .txt beside each image, or a sub-folder per class"
    )


def read_some_notes(folder: str | Path, images: Sequence[Path], where: str | Path = "auto") -> SomeNotes:
    """Captions and labels of those of these images that have any.

    where  "auto": captions.jsonl, else captions.csv, else .txt files; "folders": names of sub-folders; "none"; or a
           .csv file, or another file in the format of captions.jsonl

    Raises `ValueError` naming the file where a line names no image, or one cannot be read.
    """
    root = Path(folder)
    keys = [path.relative_to(root).as_posix() for path in images]
    if where == "none":
        return SomeNotes()
    if where == "folders":
        names = _folder_names(keys)
        if not names:
            raise ValueError(f"{root}: captions='folders', but no image stands in a sub-folder; make one per class")
        classes = tuple(sorted(set(names.values())))
        labels = dict(zip(names, _numbered(names.values(), classes), strict=True))
        return SomeNotes({key: _spoken(name) for key, name in names.items()}, labels, "names of sub-folders", classes)
    table = _table_of(root) if where == "auto" else Path(where)
    return _some_texts(root, keys) if table is None else _some_lines(root, table, keys)


def _read_jsonl(path: Path) -> _Table:
    """Lines of a captions.jsonl by image; `ValueError` names the line that is wrong."""
    from tokenizers_mm.runtime import is_text

    notes: _Table = {}
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


def _read_csv(path: Path) -> _Table:
    lines = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True)
    columns = set(lines.fieldnames or ())
    if "file" not in columns or not columns & {"caption", "label"}:
        raise ValueError(f"{path} line 1: expected the columns file, and caption or label; found {sorted(columns)}")
    notes: _Table = {}
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


def _table_of(root: Path) -> Path | None:
    """The file with all captions, where there is one."""
    return next((root / name for name in (CAPTIONS, CSV) if (root / name).exists()), None)


def _read_table(root: Path, path: Path, keys: Sequence[str]) -> _Table:
    notes = _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path)
    known = set(keys)
    strangers = [key for key in notes if key not in known]
    if strangers:
        raise ValueError(f"{path}: {len(strangers)} lines name no image under {root}; the first is {strangers[0]!r}")
    return notes


def _some_lines(root: Path, path: Path, keys: Sequence[str]) -> SomeNotes:
    notes, as_text = _read_table(root, path, keys), path.suffix.lower() == ".csv"
    found: dict[str, dict[str, Any]] = {"caption": {}, "label": {}}
    for name, values in found.items():
        for key in keys:
            value = notes.get(key, {}).get(name)
            if value is not None and (not as_text or value.strip()):  # an empty cell is no caption
                values[key] = value
    captions, labels = found.values()
    if not as_text or not labels:
        return SomeNotes(captions, labels, path.name)
    numbers, classes = _classes(root, path, list(labels.values()))
    return SomeNotes(captions, dict(zip(labels, numbers, strict=True)), path.name, classes)


def _some_texts(root: Path, keys: Sequence[str]) -> SomeNotes:
    texts = {path.relative_to(root).as_posix(): path for path in root.rglob("*.txt") if path.is_file()}
    beside = {key: PurePosixPath(key).with_suffix(".txt").as_posix() for key in keys}
    strays = tuple(sorted(texts.keys() - set(beside.values())))
    captions = {key: _read_words(texts[text]) for key, text in beside.items() if text in texts}
    captions = {key: caption for key, caption in captions.items() if caption}
    if not captions:
        return SomeNotes(strays=strays, folders=bool(_folder_names(keys)))
    return SomeNotes(captions, {}, ".txt files beside them", strays=strays)


def _from_table(root: Path, path: Path, keys: Sequence[str], notes: Mapping[str, Mapping[str, Any]]) -> Notes:
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
        numbers = _numbered(names, known)
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


def _folder_names(keys: Sequence[str]) -> dict[str, str]:
    """The first folder in the path of every image that has one."""
    return {key: key.split("/", 1)[0] for key in keys if "/" in key}


def _numbered(names: Iterable[str], classes: Sequence[str]) -> list[int]:
    """Places of the names among those of the classes, the first of equal ones."""
    index = {name: number for number, name in reversed(list(enumerate(classes)))}
    return [index[name] for name in names]


def _read_caption(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: missing, while other images have one: write a caption there, or remove the image")
    caption = _read_words(path)
    if not caption:
        raise ValueError(f"{path}: the caption is empty; write one, or remove the image")
    return caption


def _read_words(path: Path) -> str:
    return " ".join(_read(path).split())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets begin with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")
