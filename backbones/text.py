"""Text as bytes: no vocabulary to train, every language works, nothing is out of vocabulary.

Two views of a caption: `encode` gives one id per byte (what a model writes), `encode_pieces` one row of bytes per word
(what a model reads as a condition: one position a word makes the prefix about five times shorter).

Shape letters: B batch, T bytes, W pieces, P bytes of one piece.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    ids_BT = torch.full((len(rows), max(map(len, rows)) + 2), PAD)
    for ids_T, row in zip(ids_BT, rows, strict=True):
        ids_T[: len(row) + 2] = torch.tensor([BEGIN, *row, END])
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
    ids_BWP = torch.full((len(pieces), max(map(len, pieces)), PIECE), PAD)
    for ids_WP, row in zip(ids_BWP, pieces, strict=True):
        for ids_P, piece in zip(ids_WP, row, strict=False):
            ids_P[: len(piece)] = torch.tensor(list(piece))
    return ids_BWP, (ids_BWP != PAD).any(-1)


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise ValueError(f"texts={texts[:40]!r}: expected a list of texts, one per image; wrap it in a list")
    if not len(texts):
        raise ValueError('captions are empty: expected one text per image; "" stands for no condition')
    return texts
