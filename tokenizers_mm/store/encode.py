"""A folder of images to a token store: resumable, exact, and honest about what it could not use.

The sorted list of images is cut into shards of `shard_size`, whatever happens to single images, so a shard's content
depends on nothing but the list: a run that is killed and repeated ends with the same bytes as one that was not.

Captions and labels are those that `notes` finds beside the images.

Shape letters: V vocabulary, D channels of a vector.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tokenizers_mm.api import Tokenizer, TokenSpec
from tokenizers_mm.data import (
    CAPTIONS,
    ImageError,
    PartialAnnotations,
    Preprocess,
    find_images,
    read_partial_annotations,
)
from tokenizers_mm.runtime import choose_device, local_path
from tokenizers_mm.saving import fingerprint_of
from tokenizers_mm.store.code_vectors import codebook_of, rebuilt_quantizer
from tokenizers_mm.store.dataset import Inputs, Quarantined, StoreWriter
from tokenizers_mm.store.encode_shard import Input, ShardEncoder, load_input
from tokenizers_mm.store.quarantine import Quarantine
from tokenizers_mm.store.shards import digest
from tokenizers_mm.traits import downsampling_of, on_device, only_side

__all__ = ["CAPTIONS", "EncodeReport", "encode_folder"]


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
    encoder = ShardEncoder(
        tokenizer, _store_spec(tokenizer.spec, preprocess, items, root), preprocess, batch_size, device
    )
    made_by = fingerprint or fingerprint_of(tokenizer)  # before it computes anything, which may fill caches
    codebook_VD, quantizer = codebook_of(tokenizer, device), rebuilt_quantizer(tokenizer, device)
    with StoreWriter(out, encoder.spec, made_by, preprocess, codebook_VD, inputs, quantizer) as writer:
        counts = _write_missing(writer, encoder, items, inputs, progress)
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


def _write_missing(
    writer: StoreWriter,
    encoder: ShardEncoder,
    items: Sequence[Input],
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
            tokens, rows, refused = encoder.encode(chosen)
            writer.write_shard(index, tokens, rows, refused)
            counts["encoded"] += len(rows)
            counts["quarantined"] += len(refused)
        if progress:
            progress(sum(counts.values()), len(items))
    return counts


def _store_spec(spec: TokenSpec, preprocess: Preprocess, items: Sequence[Input], folder: Path) -> TokenSpec:
    """The tokenizer's spec at the size images will have: at native size, that of the first image that can be read."""
    if preprocess.size is not None:
        return spec.resized((preprocess.size, preprocess.size))
    first: Quarantined | None = None
    for item in items:
        try:
            height, width = load_input(item, preprocess)[1].shape[:2]
            return spec.resized((height, width))
        except ImageError as error:
            first = first or Quarantined(item.key, item.path.as_posix(), error.stage, error.reason)
    assert first is not None
    raise _all_bad(folder, len(items), first)


def _all_bad(folder: Path, count: int, first: Quarantined) -> ValueError:
    return ValueError(
        f"{folder}: none of its {count} images could be encoded; the first, {first.key!r}: {first.stage}: {first.error}"
    )


def _list_inputs(folder: Path, captions: str | Path) -> tuple[list[Input], PartialAnnotations]:
    paths = find_images(folder)
    notes = read_partial_annotations(folder, paths, captions)
    if notes.strays:
        more = f" and {len(notes.strays) - 1} others" if len(notes.strays) > 1 else ""
        warnings.warn(f"{folder / notes.strays[0]}{more}: beside no image of that name, so no caption", stacklevel=3)
    keys = [path.relative_to(folder).as_posix() for path in paths]
    items = [
        Input(key, path, notes.captions.get(key), notes.labels.get(key)) for key, path in zip(keys, paths, strict=True)
    ]
    return items, notes
