"""Captions and labels of an image folder, wherever they stand. Looked for in this order:

    captions.jsonl   lines {"file": "a/b.png", "caption": "a red cat", "label": 3}; caption and label are optional
    captions.csv     a header with `file`, and `caption` or `label` or both; labels are numbers, or names of classes
    b.txt            beside b.png, its caption
    sub-folders      cat/1.png: the first folder of the path is the class, and stands for the caption

Paths are relative to the folder, the text is UTF-8. `classes.json`, a list of names, says what numbers mean.

    read_annotations          for training: what is there must be there for every image
    read_partial_annotations  for encoding: an image may have none; names of sub-folders count where they are asked for
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tokenizers_mm.data.annotation_formats import (
    CAPTIONS,
    CLASSES,
    CSV,
    read_caption,
    read_classes,
    read_table,
    read_words,
)

__all__ = ["Annotations", "PartialAnnotations", "read_annotations", "read_partial_annotations"]


@dataclass(frozen=True)
class Annotations:
    """What a folder says about its images, in their order.

    captions  one per image, or () where there are none
    labels    one per image, an index into `classes`, or () where there are none
    """

    captions: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class PartialAnnotations:
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


def read_annotations(folder: str | Path, images: Sequence[Path]) -> Annotations:
    """Captions and labels of these images of a folder.

    Raises `ValueError` naming the file where there are none, where they and the images do not pair, or where one is
    empty or cannot be read.
    """
    root = Path(folder)
    keys = [path.relative_to(root).as_posix() for path in images]
    table = _table_of(root)
    if table is not None:
        return _from_table(root, table, keys, read_table(root, table, keys))
    texts = [path.with_suffix(".txt") for path in images]
    if any(path.is_file() for path in texts):
        return Annotations(tuple(read_caption(path) for path in texts), (), ())
    names = _folder_names(keys)
    if len(names) == len(keys):
        classes = tuple(sorted(set(names.values())))
        return Annotations(tuple(map(_spoken, names.values())), tuple(_numbered(names.values(), classes)), classes)
    raise ValueError(
        f"{root}: no captions and no labels; add {CAPTIONS}, {CSV}, a .txt beside each image, or a sub-folder per class"
    )


def read_partial_annotations(
    folder: str | Path, images: Sequence[Path], where: str | Path = "auto"
) -> PartialAnnotations:
    """Captions and labels of those of these images that have any.

    where  "auto": captions.jsonl, else captions.csv, else .txt files; "folders": names of sub-folders; "none"; or a
           .csv file, or another file in the format of captions.jsonl

    Raises `ValueError` naming the file where a line names no image, or one cannot be read.
    """
    root = Path(folder)
    keys = [path.relative_to(root).as_posix() for path in images]
    if where == "none":
        return PartialAnnotations()
    if where == "folders":
        names = _folder_names(keys)
        if not names:
            raise ValueError(f"{root}: captions='folders', but no image stands in a sub-folder; make one per class")
        classes = tuple(sorted(set(names.values())))
        labels = dict(zip(names, _numbered(names.values(), classes), strict=True))
        return PartialAnnotations(
            {key: _spoken(name) for key, name in names.items()}, labels, "names of sub-folders", classes
        )
    table = _table_of(root) if where == "auto" else Path(where)
    return _some_texts(root, keys) if table is None else _some_lines(root, table, keys)


def _some_lines(root: Path, path: Path, keys: Sequence[str]) -> PartialAnnotations:
    notes, as_text = read_table(root, path, keys), path.suffix.lower() == ".csv"
    found: dict[str, dict[str, Any]] = {"caption": {}, "label": {}}
    for name, values in found.items():
        for key in keys:
            value = notes.get(key, {}).get(name)
            if value is not None and (not as_text or value.strip()):  # an empty cell is no caption
                values[key] = value
    captions, labels = found.values()
    if not as_text or not labels:
        return PartialAnnotations(captions, labels, path.name)
    numbers, classes = _classes(root, path, list(labels.values()))
    return PartialAnnotations(captions, dict(zip(labels, numbers, strict=True)), path.name, classes)


def _some_texts(root: Path, keys: Sequence[str]) -> PartialAnnotations:
    texts = {path.relative_to(root).as_posix(): path for path in root.rglob("*.txt") if path.is_file()}
    beside = {key: PurePosixPath(key).with_suffix(".txt").as_posix() for key in keys}
    strays = tuple(sorted(texts.keys() - set(beside.values())))
    captions = {key: read_words(texts[text]) for key, text in beside.items() if text in texts}
    captions = {key: caption for key, caption in captions.items() if caption}
    if not captions:
        return PartialAnnotations(strays=strays, folders=bool(_folder_names(keys)))
    return PartialAnnotations(captions, {}, ".txt files beside them", strays=strays)


def _from_table(root: Path, path: Path, keys: Sequence[str], notes: Mapping[str, Mapping[str, Any]]) -> Annotations:
    captions, labels = (_column(path, keys, notes, name) for name in ("caption", "label"))
    for key, caption in zip(keys, captions, strict=False):
        if not caption.strip():
            raise ValueError(f"{path}: the caption of {key!r} is empty; write one, or remove the image")
    if not captions and not labels:
        raise ValueError(f"{path}: holds neither captions nor labels")
    return Annotations(tuple(captions), *_classes(root, path, labels))


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
        known = read_classes(root / CLASSES)
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


def _folder_names(keys: Sequence[str]) -> dict[str, str]:
    """The first folder in the path of every image that has one."""
    return {key: key.split("/", 1)[0] for key in keys if "/" in key}


def _numbered(names: Iterable[str], classes: Sequence[str]) -> list[int]:
    """Places of the names among those of the classes, the first of equal ones."""
    index = {name: number for number, name in reversed(list(enumerate(classes)))}
    return [index[name] for name in names]


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def _table_of(root: Path) -> Path | None:
    """The file with all captions, where there is one."""
    return next((root / name for name in (CAPTIONS, CSV) if (root / name).exists()), None)
