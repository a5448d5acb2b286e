"""The images of one shard become tokens: read, decoded, brought to size, encoded in batches, checked.

Shape letters: B batch, C image channels, H and W pixels, n images of a shard, N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizers_mm.api import Tokenizer, Tokens, TokenSpec
from tokenizers_mm.data import ImageError, Preprocess, decode, to_tensor
from tokenizers_mm.runtime import is_text
from tokenizers_mm.store.shards import Quarantined, Row, digest

__all__ = ["Input", "ShardEncoder", "load_input"]

Fate = ValueError | None  # why an image has no tokens


@dataclass(frozen=True)
class Input:
    """An image file, the key it will have, and what is said about it."""

    key: str
    path: Path
    caption: str | None
    label: int | None


@dataclass(frozen=True)
class ShardEncoder:
    """Encodes the inputs of one shard. `spec` is that of the store."""

    tokenizer: Tokenizer
    spec: TokenSpec
    preprocess: Preprocess
    batch_size: int
    device: torch.device

    def encode(self, items: Sequence[Input]) -> tuple[Tokens, list[Row], list[Quarantined]]:
        """Tokens and rows of the images that could be encoded, and the others."""
        parts: list[Tensor] = []
        rows: list[Row] = []
        refused: list[Quarantined] = []
        for group in self._batches(items, refused):
            image_BCHW = torch.stack([to_tensor(image) for _, image in group]).to(self.device)
            good, fates = self._encoded(image_BCHW)
            parts += good
            for (row, _), error in zip(group, fates, strict=True):
                if error is None:
                    rows.append(row)
                else:
                    refused.append(Quarantined(row.key, row.source, "encode", str(error)))
        return self._joined(parts), rows, refused

    def _joined(self, parts: list[Tensor]) -> Tokens:
        """Tokens of a shard [n, N, ...]; there may be none."""
        if self.spec.discrete:
            codes_nNS = torch.empty((0, self.spec.length, self.spec.streams), dtype=torch.int64)
            return Tokens(codes_BNS=torch.cat([codes_nNS, *parts]), grid=self.spec.grid)
        latents_nND = torch.empty((0, self.spec.length, self.spec.dim), dtype=torch.bfloat16)
        return Tokens(latents_BND=torch.cat([latents_nND, *parts]), grid=self.spec.grid)

    def _encoded(self, image_BCHW: Tensor) -> tuple[list[Tensor], list[Fate]]:
        """Tokens of the images that have some, and each one's fate: a refused batch is tried again image by image."""
        try:
            with torch.inference_mode():
                tokens = self.tokenizer.encode(image_BCHW).to("cpu")
        except ValueError as error:
            return _one_by_one(self._encoded, image_BCHW, error)
        if tokens.grid != self.spec.grid or len(tokens) != len(image_BCHW):
            raise ValueError(
                f"the tokenizer returned {len(tokens)} images of grid {tokens.grid} for {len(image_BCHW)} of "
                f"{self.spec.image_size} pixels; its spec promises {self.spec.grid}"
            )
        # Latents are checked as they will be stored: a finite float32 can be infinite in bfloat16.
        return self._checked(tokens.to(torch.bfloat16))

    def _checked(self, tokens: Tokens) -> tuple[list[Tensor], list[Fate]]:
        """The tokens if all are well formed; if not, each image's are looked at by themselves."""
        try:
            return [tokens.check(self.spec).data], [None] * len(tokens)
        except ValueError as error:
            return _one_by_one(self._checked, tokens, error)

    def _batches(
        self, items: Sequence[Input], refused: list[Quarantined]
    ) -> Iterator[list[tuple[Row, NDArray[np.uint8]]]]:
        """Decoded images in groups of `batch_size`; those that cannot be used are added to `refused`."""
        group: list[tuple[Row, NDArray[np.uint8]]] = []
        for item in items:
            source = item.path.as_posix()
            try:
                data, image = load_input(item, self.preprocess)
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


def load_input(item: Input, preprocess: Preprocess) -> tuple[bytes, NDArray[np.uint8]]:
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


def _one_by_one(
    function: Callable[[Any], tuple[list[Tensor], list[Fate]]], batch: Any, error: ValueError
) -> tuple[list[Tensor], list[Fate]]:
    """What a function gives for every image of a batch that it refused with this error; one image alone is refused."""
    if len(batch) == 1:
        return [], [error]
    found = [function(batch[number : number + 1]) for number in range(len(batch))]
    return [part for parts, _ in found for part in parts], [fate for _, fates in found for fate in fates]
