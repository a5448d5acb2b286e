"""Text as bytes: no vocabulary to train, every language works, nothing is out of vocabulary.

Two views of a caption: `encode` gives one id per byte (what a model writes), `encode_pieces` one row of bytes per word
(what a model reads as a condition: one position a word makes the prefix about five times shorter).

Shape letters: B batch, T bytes, W pieces, P bytes of one piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PAD, BEGIN, END = 256, 257, 258
VOCABULARY = 259
PIECE = 12  # bytes of one piece; longer words continue in the next piece


def encode(texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
    """Ids [B, T] int64 of begin, UTF-8 bytes, end, padded to the longest, and the mask [B, T] of what is not padding.

    Raises `ValueError` for an empty batch and for a text of more than `max_length` bytes.
    """
    rows = [text.encode() for text in _checked(texts)]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > max_length:
            raise ValueError(
                f"text {text[:40]!r}... has {len(row)} bytes, the limit is {max_length}: shorten it or raise max_text"
            )
    # In numpy, and once a row: this runs in every training step.
    table_BT = np.full((len(rows), max(map(len, rows)) + 2), PAD)
    table_BT[:, 0] = BEGIN
    for table_T, row in zip(table_BT, rows, strict=True):
        table_T[1 : len(row) + 1] = np.frombuffer(row, np.uint8)
        table_T[len(row) + 1] = END
    ids_BT = torch.from_numpy(table_BT)
    return ids_BT, ids_BT != PAD


def decode(ids_BT: Tensor) -> list[str]:
    """Texts of ids [B, T]: reading stops at the first end, specials are skipped, broken UTF-8 becomes U+FFFD."""
    texts = []
    for row in ids_BT.tolist():
        body = row[: row.index(END)] if END in row else row
        texts.append(bytes(byte for byte in body if byte < PAD).decode(errors="replace"))
    return texts


def encode_pieces(texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
    """Bytes [B, W, P] int64 of every whitespace-separated word, padded, and the mask [B, W] of the pieces that exist.

    A text of no words has no pieces. Raises `ValueError` like `encode`.
    """
    pieces = []
    for text in _checked(texts):
        size = len(text.encode())
        if size > max_length:
            raise ValueError(
                f"text {text[:40]!r}... has {size} bytes, the limit is {max_length}: shorten it or raise max_text"
            )
        words = [word.encode() for word in text.split()]
        pieces.append([word[start : start + PIECE] for word in words for start in range(0, len(word), PIECE)])
    table_BWP = np.full((len(pieces), max(map(len, pieces)), PIECE), PAD)
    for table_WP, row in zip(table_BWP, pieces, strict=True):
        for table_P, piece in zip(table_WP, row, strict=False):
            table_P[: len(piece)] = np.frombuffer(piece, np.uint8)
    ids_BWP = torch.from_numpy(table_BWP)
    return ids_BWP, (ids_BWP != PAD).any(-1)


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise ValueError(f"texts={texts[:40]!r}: expected a list of texts, one per image; wrap it in a list")
    if not len(texts):
        raise ValueError('captions are empty: expected one text per image; "" stands for no condition')
    return texts
