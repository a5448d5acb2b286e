"""Signs and codes: every implementation bit for bit, on odd shapes, at any alignment, in both orders."""

import sys

import numpy as np
import pytest
import torch

from quantizers import kernels
from quantizers.kernels import bits, native
from quantizers.kernels.native import library
from quantizers.kernels.native.build import cache_folder

# Vectors, streams, bits of a stream: codes that end anywhere in a word, blocks that end anywhere in the array.
SHAPES = [
    (0, 1, 5),
    (1, 1, 1),
    (1, 1, 62),
    (7, 3, 5),
    (1000, 1, 18),
    (333, 2, 31),
    (65, 4, 16),
    (129, 1, 61),
    (4097, 1, 1),
    (20_011, 2, 13),
]
NATIVE = native.available()
ISAS = [isa for isa in (0, 1, 2) if NATIVE and isa <= library.library().tmm_best_isa()]

every_backend = pytest.mark.parametrize("backend", ["torch", *(["native"] if NATIVE else [])])


def numbers(count, dim, offset=0):
    """Vectors whose memory starts `offset` numbers past an aligned place; some are zero, subnormal or negative zero."""
    z = torch.randn(count * dim + offset)[offset:].view(count, dim)
    z[z.abs() < 0.05] = 0
    z[torch.rand_like(z) < 0.02] = -0.0
    z[torch.rand_like(z) < 0.02] = 1e-45
    z[torch.rand_like(z) < 0.02] = -1e-45
    return z


def by_numpy(z, scale, streams, msb):
    """The definition, one vector at a time in Python's integers."""
    bit = z.numpy() > 0
    codes = [
        [int("".join("01"[int(b)] for b in (row if msb else row[::-1])), 2) for row in vector.reshape(streams, -1)]
        for vector in bit
    ]
    return np.where(bit, np.float32(scale), np.float32(-scale)), np.array(codes, dtype=np.int64).reshape(-1, streams)


def assert_equal(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == torch.as_tensor(b).dtype
        assert torch.equal(a, torch.as_tensor(b))


@pytest.mark.parametrize("msb", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_the_definition(shape, msb):
    count, streams, width = shape
    z = numbers(min(count, 300), streams * width)
    assert_equal(bits.sign_quantize_reference(z, 0.3, streams, msb), by_numpy(z, 0.3, streams, msb))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_is_the_reference_bit_for_bit(isa, shape):
    count, streams, width = shape
    for offset in (0, 1, 3):
        z = numbers(count, streams * width, offset)
        for msb in (True, False):
            expected = bits.sign_quantize_reference(z, 0.3, streams, msb)
            assert_equal(native.sign_quantize(z, 0.3, streams, msb, isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_several_threads_and_results_beyond_the_caches(isa):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for count, width in ((5000, 9), (350_001, 18)):
            z = numbers(count, width)
            for msb in (True, False):
                expected = bits.sign_quantize_reference(z, 1.0, 1, msb)
                assert_equal(native.sign_quantize(z, 1.0, 1, msb, isa=isa), expected)
    finally:
        torch.set_num_threads(threads)


def test_the_shapes_of_avx512_give_the_same_on_any_processor(monkeypatch):
    """The 16-lane code, compiled for AVX2 so that it can run here."""
    if not ISAS or max(ISAS) < 1:
        pytest.skip("needs AVX2")
    wide = library.KERNELS.load(library.KERNELS.build(cache_folder(), "-DTMM_WIDE_ON_AVX2"))
    monkeypatch.setattr(sys.modules["quantizers.kernels.native.bits"], "library", lambda: wide)
    for count, streams, width in SHAPES:
        z = numbers(count, streams * width)
        for msb in (True, False):
            expected = bits.sign_quantize_reference(z, 0.3, streams, msb)
            assert_equal(native.sign_quantize(z, 0.3, streams, msb, isa=2), expected)


@every_backend
def test_public_function(backend):
    z = torch.randn(40, 12, dtype=torch.float64, requires_grad=True)
    with kernels.using(backend):
        expected = bits.sign_quantize_reference(z.detach()[::2].float(), 0.5, 3, True)
        assert_equal(kernels.sign_quantize(z[::2], scale=0.5, streams=3), expected)
        assert_equal(kernels.sign_quantize(z[::2].bfloat16(), scale=0.5, streams=3), expected)
        assert [x.shape for x in kernels.sign_quantize(z[:0], streams=3)] == [(0, 12), (0, 3)]
        compiled = torch.compile(
            lambda a: kernels.sign_quantize(a, streams=2, msb=False), fullgraph=True, backend="aot_eager"
        )
        assert_equal(compiled(z), kernels.sign_quantize(z, streams=2, msb=False))
        torch.library.opcheck(bits._sign_quantize.op, (z.detach().float(), 0.5, 3, True))


@every_backend
def test_orders_and_zero(backend):
    z = torch.tensor([[1.0, -1, 0, 2, 3, -0.0], [-1, 1, 1, -1, -1, 1]])
    with kernels.using(backend):
        q, codes = kernels.sign_quantize(z, scale=2)
        assert q.tolist() == [[2, -2, -2, 2, 2, -2], [-2, 2, 2, -2, -2, 2]]
        assert codes.tolist() == [[0b100110], [0b011001]]
        assert kernels.sign_quantize(z, msb=False)[1].tolist() == [[0b011001], [0b100110]]
        assert kernels.sign_quantize(z, streams=2)[1].tolist() == [[0b100, 0b110], [0b011, 0b001]]
        assert kernels.sign_quantize(z, streams=3, msb=False)[1].tolist() == [[0b01, 0b10, 0b01], [0b10, 0b01, 0b10]]


@pytest.mark.parametrize("msb", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_vectors_of_codes(shape, msb):
    count, streams, width = shape
    q, codes = kernels.sign_quantize(torch.randn(count, streams * width), scale=0.3, streams=streams, msb=msb)
    assert_equal([kernels.sign_vectors(codes, streams * width, scale=0.3, msb=msb)], [q])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_bits_hold_the_codes_in_the_fewest_bytes(shape):
    count, streams, width = shape
    dim = streams * width
    z = torch.randn(count, dim)
    codes = kernels.sign_quantize(z, streams=streams)[1]
    packed = kernels.pack_bits(codes, dim)
    assert packed.shape == (count, -(-dim // 8))
    assert_equal([packed], [np.packbits(z.numpy() > 0, axis=1)])
    assert_equal([kernels.unpack_bits(packed, dim, streams=streams)], [codes])


def test_bad_arguments_are_named():
    z, codes = torch.zeros(2, 126), torch.zeros(2, 1, dtype=torch.int64)
    cases = [
        (lambda: kernels.sign_quantize(z[0]), r"z_ND is torch.float32 of shape \(126,\)"),
        (lambda: kernels.sign_quantize(z.long(), streams=3), "z_ND is torch.int64"),
        (lambda: kernels.sign_quantize(z, streams=4), "streams=4: expected a divisor of the 126 channels"),
        (lambda: kernels.sign_quantize(z, streams=0), "streams=0: expected a divisor"),
        (lambda: kernels.sign_quantize(z, streams=2), "streams=2: 63 bits do not fit a code of at most 62"),
        (lambda: kernels.sign_quantize(z, streams=3, scale=0.0), r"scale=0.0: expected a positive number"),
        (lambda: kernels.pack_bits(codes.float(), 8), "codes_NS is torch.float32"),
        (lambda: kernels.pack_bits(codes.repeat(1, 3), 8), "streams=3: expected a divisor of the 8"),
        (lambda: kernels.unpack_bits(codes.byte(), 9), r"packed_NY is torch.uint8 of shape \(2, 1\).* \[N, 2\]"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
