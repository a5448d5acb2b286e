"""Residual encoding against its definition, in both implementations that run on a CPU."""

import sys

import pytest
import torch

from quantizers import kernels
from quantizers.kernels import native, residual_encode
from quantizers.kernels.native import library
from quantizers.kernels.native.build import cache_folder
from quantizers.kernels.residual import _residual_encode, residual_encode_reference, residual_errors

NATIVE = native.available()
needs_native = pytest.mark.skipif(not NATIVE, reason="needs a C++ compiler")
every_backend = pytest.mark.parametrize("name", ["torch", pytest.param("native", marks=needs_native)])


def example(count=700, dim=6, sizes=(32, 32, 32)):
    scale = [0.5**level for level in range(len(sizes))]
    return torch.randn(count, dim), [torch.randn(size, dim) * s for size, s in zip(sizes, scale, strict=True)]


@every_backend
@pytest.mark.parametrize(("count", "dim", "sizes"), [(700, 6, (32, 32, 32)), (33, 40, (7, 100, 2)), (1, 1, (5,))])
def test_every_level_is_nearest_to_what_is_left_except_at_provable_ties(name, count, dim, sizes):
    z, codebooks = example(count, dim, sizes)
    with kernels.using(name):
        codes, q, errors = residual_errors(z, codebooks)
        assert all(torch.equal(a, b) for a, b in zip(residual_encode(z, codebooks), (codes, q), strict=True))
    assert (codes.shape, codes.dtype, q.shape) == ((count, len(sizes)), torch.int64, z.shape)
    left, total = z.clone(), torch.zeros_like(z)
    for level, rows in enumerate(codebooks):
        distance = torch.cdist(left.double(), rows.double()).square()
        chosen = distance.gather(1, codes[:, level, None])[:, 0]
        scale = left.double().norm(dim=1) * rows.double().norm(dim=1).max() + rows.double().square().sum(1).max() / 2
        assert bool((chosen - distance.min(1).values <= 4 * (dim + 2) * torch.finfo(torch.float32).eps * scale).all())
        left, total = left - rows[codes[:, level]], total + rows[codes[:, level]]
        torch.testing.assert_close(errors[:, level], left.square().sum(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(q, total)


@every_backend
def test_blocks_do_not_show(name, monkeypatch):
    z, codebooks = example()
    with kernels.using(name):
        whole = residual_encode(z, codebooks)
        monkeypatch.setattr("quantizers.kernels.residual._BLOCK_BYTES", 4 * 6 * 97)
        assert all(torch.equal(a, b) for a, b in zip(residual_encode(z, codebooks), whole, strict=True))


EXAMPLES = [(201, 13, (500, 3)), (50, 300, (2000, 40)), (1, 1, (2, 2, 2))]


def assert_one_search_after_the_other(isa, example_of):
    z, codebooks = example(*example_of)
    codes, q, errors = residual_encode_reference(z, codebooks)
    found = native.residual_encode(z, codebooks, isa=isa)
    assert torch.equal(found[0], codes)
    assert torch.equal(found[1], q)
    torch.testing.assert_close(found[2], errors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", [isa for isa in (0, 1, 2) if NATIVE and isa <= library.library().tmm_best_isa()])
@pytest.mark.parametrize("example_of", EXAMPLES)
def test_native_equals_one_search_after_the_other(isa, example_of):
    assert_one_search_after_the_other(isa, example_of)


@needs_native
def test_avx512_shapes_are_right_without_avx512(monkeypatch):
    if library.library().tmm_best_isa() == 0:
        pytest.skip("needs AVX2")
    wide = library.KERNELS.load(library.KERNELS.build(cache_folder(), "-DTMM_WIDE_ON_AVX2"))
    monkeypatch.setattr(sys.modules["quantizers.kernels.native.residual"], "library", lambda: wide)
    for example_of in EXAMPLES:
        assert_one_search_after_the_other(2, example_of)


def test_ties_go_to_the_lowest_index_and_the_input_stays():
    z, rows = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 0], [0, 0], [1, 0], [0, 0]])
    codes, q = residual_encode(z, [rows, rows])
    assert codes.tolist() == [[0, 1]]
    assert torch.equal(q, z)
    assert torch.equal(z, torch.tensor([[1.0, 0]]))


def test_no_vectors_no_codes():
    codes, q = residual_encode(torch.zeros(0, 3), [torch.zeros(5, 3)] * 2)
    assert (codes.shape, q.shape) == ((0, 2), (0, 3))


def test_it_is_an_operation_that_compiles():
    z, codebooks = example(50)
    for errors in (False, True):
        torch.library.opcheck(_residual_encode.op, (z, codebooks, errors))
    compiled = torch.compile(residual_encode, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(z, codebooks), residual_encode(z, codebooks), strict=True))


@pytest.mark.parametrize(
    ("z", "codebooks", "message"),
    [
        (torch.zeros(4, 3), [], "codebooks is empty"),
        (torch.zeros(4, 3), [torch.zeros(2, 3), torch.zeros(2, 4)], r"codebooks\[1\] \(2, 4\)"),
        (torch.zeros(3), [torch.zeros(2, 3)], r"z_ND has shape \(3,\)"),
        (torch.zeros(4, 3), [torch.zeros(0, 3)], r"codebooks\[0\] has no rows"),
    ],
)
def test_impossible_arguments_are_refused(z, codebooks, message):
    with pytest.raises(ValueError, match=message):
        residual_encode(z, codebooks)
