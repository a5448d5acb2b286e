"""A folder of images to a token store: resumable, exact, and honest about what it could not use.

The sorted list of images is cut into shards of `shard_size`, whatever happens to single images, so a shard's content
depends on nothing but the list: a run that is killed and repeated ends with the same bytes as one that was not.

Captions and labels are those that `notes` finds beside the images.

Shape letters: B batch, C image channels, H and W pixels, N positions, V vocabulary, D channels of a vector.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizers_mm.api import Tokenizer, Tokens, TokenSpec
from tokenizers_mm.data import (
    CAPTIONS,
    ImageError,
    Preprocess,
    SomeNotes,
    decode,
    find_images,
    read_some_notes,
    to_tensor,
)
from tokenizers_mm.runtime import choose_device, is_text, local_path
from tokenizers_mm.saving import fingerprint_of
from tokenizers_mm.store.dataset import Inputs, Quarantined, Row, StoreWriter
from tokenizers_mm.store.quarantine import Quarantine
from tokenizers_mm.store.shards import digest
from tokenizers_mm.traits import downsampling_of, on_device, only_side

__all__ = ["CAPTIONS", "EncodeReport", "codebook_of", "encode_folder"]

_LARGEST_CODEBOOK = 65_536


@dataclass(frozen=True, kw_only=True)
class EncodeReport:
    """What one run did, and what the store holds now.

    inputs    images of the folder = encoded + quarantined + skipped, where skipped were committed by an earlier run
    captions  images of the folder that have one;  labels  the same
    found     where those stand, in words, a line each
    refused   quarantined images of the whole store, those of earlier runs among them: share and reasons
    """

    inputs: int
    encoded: int
    quarantined: int
    skipped: int
    captions: int
    labels: int
    found: tuple[str, ...]
    refused: Quarantine

    @property
    def quarantined_share(self) -> float:
        """Quarantined images of the whole store, of all inputs."""
        return self.refused.share

    @property
    def reasons(self) -> tuple[tuple[str, int], ...]:
        """Why images were quarantined, and how many; the most frequent first."""
        return self.refused.reasons


@dataclass(frozen=True)
class _Input:
    key: str
    path: Path
    caption: str | None
    label: int | None


def encode_folder(
    tokenizer: Tokenizer,
    folder: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    fingerprint: str | None = None,
    preprocess: Preprocess | None = None,
    captions: str | Path = "auto",
    batch_size: int = 32,
    shard_size: int = 1024,
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode every jpg, png and webp under `folder` into the token store `out`, or finish what is missing there.

    The key of an image is its path relative to the folder. Images that cannot be read, decoded or encoded are
    quarantined: listed in the shard's record with stage and reason.

    size         resize the shorter side to this and crop the centre; default: that of a tokenizer that takes one size
                 only, else native size, where images of another size than the first are quarantined
    fingerprint  what the store remembers the tokenizer by; default: `fingerprint_of` it
    preprocess   in place of `size`, where more is to be said
    captions     "auto": captions.jsonl, else captions.csv, else .txt files beside the images; "folders": names of
                 sub-folders are classes and captions; "none"; or a file like captions.jsonl or captions.csv. An image
                 may have none.
    device       auto (CUDA where there is one), cpu, cuda or cuda:N: the tokenizer moves there and leaves training mode
    progress     called after every shard with the images that are done, and all

    Raises `ValueError` for a folder without images, captions that name no image, a store made otherwise
    (`StoreMismatch`), a store another process writes, or where not a single image could be encoded; `OSError` where
    the disk refuses.
    """
    out, root = local_path(out), Path(folder)
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"batch_size={batch_size}, shard_size={shard_size}: both must be at least 1")
    if preprocess is not None and size is not None:
        raise ValueError(f"size={size} and preprocess={preprocess}: give one of them")
    device = choose_device(device)
    tokenizer = on_device(tokenizer, device)
    preprocess = preprocess or Preprocess(size or only_side(tokenizer), downsampling_of(tokenizer))
    items, notes = _list_inputs(root, captions)
    listing = json.dumps([[item.key, item.caption, item.label] for item in items])
    inputs = Inputs(len(items), shard_size, digest(listing.encode()))
    worker = _Worker(tokenizer, _store_spec(tokenizer.spec, preprocess, items, root), preprocess, batch_size, device)
    made_by = fingerprint or fingerprint_of(tokenizer)  # before it computes anything, which may fill caches
    table = codebook_of(tokenizer, device)
    with StoreWriter(out, worker.spec, made_by, preprocess, table, inputs) as writer:
        counts = _write_missing(writer, worker, items, inputs, progress)
        records = list(writer.records.values())
    refused = [item for record in records for item in record["quarantined"]]
    if len(refused) == len(items):
        raise _all_bad(root, len(items), Quarantined(**refused[0]))
    return EncodeReport(
        inputs=len(items),
        **counts,
        captions=sum(bool(item.caption) for item in items),
        labels=sum(item.label is not None for item in items),
        found=() if captions == "none" else notes.lines(len(items)),
        refused=Quarantine.of(refused, len(items), preprocess.to_json()),
    )


def codebook_of(tokenizer: Tokenizer, device: torch.device | str = "cpu") -> Tensor | None:
    """Vector of every code [V, D] of a single-stream tokenizer with at most 65 536 codes, else None.

    Codes are embedded in two arrangements: where a vector depends on its position there is no such table.
    """
    spec = tokenizer.spec
    if spec.streams != 1 or spec.layout in ("scales", "parts") or spec.codes[0] > _LARGEST_CODEBOOK:
        return None
    size = spec.codes[0]
    tables = []
    for shift in (0, 1):
        padded = torch.zeros(-(-(size + shift) // spec.length) * spec.length, dtype=torch.int64)
        padded[shift : size + shift] = torch.arange(size)
        tokens = Tokens(codes_BNS=padded.reshape(-1, spec.length, 1), grid=spec.grid).to(device)
        with torch.inference_mode():
            z_BND = tokenizer.embed(tokens)
        tables.append(z_BND.reshape(-1, spec.dim)[shift : size + shift].float().cpu().clone())
    return tables[0] if torch.equal(tables[0], tables[1]) else None


def _write_missing(
    writer: StoreWriter,
    worker: _Worker,
    items: Sequence[_Input],
    inputs: Inputs,
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Encode the shards that are not there yet; images encoded, quarantined and skipped."""
    counts = {"encoded": 0, "quarantined": 0, "skipped": 0}
    for index in range(inputs.shards):
        chosen = items[index * inputs.shard_size : (index + 1) * inputs.shard_size]
        if index in writer.records:
            counts["skipped"] += len(chosen)
        else:
            tokens, rows, refused = worker.encode(chosen)
            writer.write_shard(index, tokens, rows, refused)
            counts["encoded"] += len(rows)
            counts["quarantined"] += len(refused)
        if progress:
            progress(sum(counts.values()), len(items))
    return counts


@dataclass(frozen=True)
class _Worker:
    """Encodes the inputs of one shard."""

    tokenizer: Tokenizer
    spec: TokenSpec
    preprocess: Preprocess
    batch_size: int
    device: torch.device

    def encode(self, items: Sequence[_Input]) -> tuple[Tokens, list[Row], list[Quarantined]]:
        """Tokens and rows of the images that could be encoded, and the others."""
        parts: list[Tensor] = []
        rows: list[Row] = []
        refused: list[Quarantined] = []
        for group in self._batches(items, refused):
            image_BCHW = torch.stack([to_tensor(image) for _, image in group]).to(self.device)
            for (row, _), one in zip(group, self._tokens(image_BCHW), strict=True):
                try:
                    if isinstance(one, ValueError):
                        raise one
                    parts.append((one if self.spec.discrete else one.to(torch.bfloat16)).check(self.spec).data)
                    rows.append(row)
                except ValueError as error:
                    refused.append(Quarantined(row.key, row.source, "encode", str(error)))
        width = self.spec.streams if self.spec.discrete else self.spec.dim
        kind = torch.int64 if self.spec.discrete else torch.bfloat16
        data = torch.cat(parts) if parts else torch.empty((0, self.spec.length, width), dtype=kind)
        name = "codes_BNS" if self.spec.discrete else "latents_BND"
        return Tokens(**{name: data}, grid=self.spec.grid), rows, refused

    def _tokens(self, image_BCHW: Tensor) -> list[Tokens | ValueError]:
        """Tokens of each image, or why there are none: a refused batch is tried again image by image."""
        try:
            with torch.inference_mode():
                tokens = self.tokenizer.encode(image_BCHW).to("cpu")
        except ValueError as error:
            if len(image_BCHW) == 1:
                return [error]
            return [one for i in range(len(image_BCHW)) for one in self._tokens(image_BCHW[i : i + 1])]
        if tokens.grid != self.spec.grid or len(tokens) != len(image_BCHW):
            raise ValueError(
                f"the tokenizer returned {len(tokens)} images of grid {tokens.grid} for {len(image_BCHW)} of "
                f"{self.spec.image_size} pixels; its spec promises {self.spec.grid}"
            )
        return [tokens[number : number + 1] for number in range(len(tokens))]

    def _batches(
        self, items: Sequence[_Input], refused: list[Quarantined]
    ) -> Iterator[list[tuple[Row, NDArray[np.uint8]]]]:
        """Decoded images in groups of `batch_size`; those that cannot be used are added to `refused`."""
        group: list[tuple[Row, NDArray[np.uint8]]] = []
        for item in items:
            source = item.path.as_posix()
            try:
                data, image = _load(item, self.preprocess)
                if image.shape[:2] != self.spec.image_size:
                    reason = f"{image.shape[:2]} pixels, this store holds images of {self.spec.image_size}"
                    raise ImageError(item.key, "preprocess", reason)
            except ImageError as error:
                refused.append(Quarantined(item.key, source, error.stage, error.reason))
                continue
            group.append((Row(item.key, item.caption, item.label, source, digest(data)), image))
            if len(group) == self.batch_size:
                yield group
                group = []
        if group:
            yield group


def _load(item: _Input, preprocess: Preprocess) -> tuple[bytes, NDArray[np.uint8]]:
    """Bytes of an image file, and the image as the tokenizer takes it; `ImageError` says what is wrong with it."""
    if not is_text(item.key):
        raise ImageError(ascii(item.key), "read", "the file name is not valid UTF-8; rename the file")
    try:
        data = item.path.read_bytes()
    except OSError as error:
        raise ImageError(item.key, "read", error.strerror or str(error)) from error
    image = decode(data)
    try:
        return data, preprocess(image)
    except ValueError as error:
        raise ImageError(item.key, "preprocess", str(error)) from error


def _store_spec(spec: TokenSpec, preprocess: Preprocess, items: Sequence[_Input], folder: Path) -> TokenSpec:
    """The tokenizer's spec at the size images will have: at native size, that of the first image that can be read."""
    if preprocess.size is not None:
        return spec.resized((preprocess.size, preprocess.size))
    first: Quarantined | None = None
    for item in items:
        try:
            height, width = _load(item, preprocess)[1].shape[:2]
            return spec.resized((height, width))
        except ImageError as error:
            first = first or Quarantined(item.key, item.path.as_posix(), error.stage, error.reason)
    assert first is not None
    raise _all_bad(folder, len(items), first)


def _all_bad(folder: Path, count: int, first: Quarantined) -> ValueError:
    return ValueError(
        f"{folder}: none of its {count} images could be encoded; the first, {first.key!r}: {first.stage}: {first.error}"
    )


def _list_inputs(folder: Path, captions: str | Path) -> tuple[list[_Input], SomeNotes]:
    paths = find_images(folder)
    notes = read_some_notes(folder, paths, captions)
    if notes.strays:
        more = f" and {len(notes.strays) - 1} others" if len(notes.strays) > 1 else ""
        warnings.warn(f"{folder / notes.strays[0]}{more}: beside no image of that name, so no caption", stacklevel=3)
    keys = [path.relative_to(folder).as_posix() for path in paths]
    items = [
        _Input(key, path, notes.captions.get(key), notes.labels.get(key)) for key, path in zip(keys, paths, strict=True)
    ]
    return items, notes
