"""Bytes there and back."""

import pytest
import torch

from backbones import text


def test_encode_and_decode_are_inverse():
    texts = ["small red circle", "", "grüße 你好"]
    ids, mask = text.encode(texts, 64)
    assert text.decode(ids) == texts
    assert ids[1, :2].tolist() == [text.BEGIN, text.END]
    assert mask.sum(1).tolist() == [len(t.encode()) + 2 for t in texts]
    assert ids.shape[1] == max(mask.sum(1).tolist())


def test_decode_stops_at_the_first_end_and_survives_broken_bytes():
    ids = torch.tensor([[text.BEGIN, 104, 105, text.END, 33, text.END], [text.BEGIN, 0xC3, text.PAD, 105, 33, 33]])
    assert text.decode(ids) == ["hi", "�i!!"]


def test_pieces_are_words_and_long_words_continue():
    ids, mask = text.encode_pieces(["a  red circle", "x" * (text.PIECE + 1), ""], 64)
    assert mask.tolist() == [[True, True, True], [True, True, False], [False, False, False]]
    assert bytes(ids[0, 2, :6].tolist()) == b"circle"
    assert ids[0, 2, 6:].eq(text.PAD).all()
    assert ids[1].ne(text.PAD).sum(-1).tolist() == [text.PIECE, 1, 0]


@pytest.mark.parametrize("encode", [text.encode, text.encode_pieces])
def test_bad_texts_are_refused(encode):
    with pytest.raises(ValueError, match="has 9 bytes, the limit is 8"):
        encode(["ok", "123456789"], 8)
    with pytest.raises(ValueError, match="captions are empty"):
        encode([], 8)
    with pytest.raises(ValueError, match="wrap it in a list"):
        encode("one text", 8)
