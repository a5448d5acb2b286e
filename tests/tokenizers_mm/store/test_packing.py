import pytest
import torch

from tokenizers_mm.store.packing import pack, row_bytes, unpack


@pytest.mark.parametrize("code_bits", [(1,), (3,), (8,), (10,), (16,), (17,), (36,), (63,), (1, 10, 4), (1,) * 18])
@pytest.mark.parametrize("length", [1, 7, 16])
def test_round_trip(code_bits, length):
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(0, 2**bits - 1, (5, length), generator=generator) for bits in code_bits], -1)
    codes[0], codes[1] = 0, torch.tensor([2**bits - 1 for bits in code_bits])
    rows = pack(codes, code_bits)
    assert rows.dtype == torch.uint8
    assert rows.shape == (5, -(-length * sum(code_bits) // 8))
    assert torch.equal(unpack(rows, length, code_bits), codes)


def test_layout_is_the_documented_one():
    codes = torch.tensor([[[5], [3]], [[7], [0]]])
    assert pack(codes, (3,)).tolist() == [[5 | 3 << 3], [7]]
    assert pack(torch.tensor([[[258], [1]]]), (16,)).tolist() == [[2, 1, 1, 0]]


def test_no_images_round_trip():
    rows = pack(torch.empty(0, 4, 1, dtype=torch.int64), (10,))
    assert rows.shape == (0, 5)
    assert unpack(rows, 4, (10,)).shape == (0, 4, 1)


@pytest.mark.parametrize("bad", [-1, 8])
def test_codes_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"codes.*stream 0.*\[.*\]: 3"):
        pack(torch.tensor([[[0], [bad]]]), (3,))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"codes.*torch.int32 \(1, 2, 1\): expected int64 \[B, N, 1\]"):
        pack(torch.zeros(1, 2, 1, dtype=torch.int32), (3,))
    with pytest.raises(ValueError, match=r"4 positions.*10.*uint8 \[B, 5\]"):
        unpack(torch.zeros(2, 6, dtype=torch.uint8), 4, (10,))
    with pytest.raises(ValueError, match=r"code_bits=\(64,\): expected 1 to 63 bits"):
        row_bytes(4, (64,))
