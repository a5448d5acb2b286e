"""Numerics of the Triton kernels, run by Triton's interpreter on CPU tensors; started by test_cuda_numerics.py."""

import math
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels below are imported

import pytest
import torch

from quantizers.kernels.cuda import nearest as nearest_file, residual as residual_file
from quantizers.kernels.cuda.bits import sign_quantize_cuda
from quantizers.kernels.cuda.nearest import nearest_cuda
from quantizers.kernels.cuda.residual import residual_encode_cuda
from quantizers.kernels.cuda.scalar import scalar_quantize_cuda
from quantizers.kernels.cuda.tiles import splits_of

EPS = torch.finfo(torch.float32).eps
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _poisoned_buffers():
    """Every torch.empty holds NaN, or the largest integer, until something is written there."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.zeros(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def scores(z, codebook, dot):
    """In float64, with the error that float32 arithmetic may make in each."""
    z, codebook = z.double(), codebook.double()
    half = codebook.square().sum(1) / 2 * (not dot)
    size = z.norm(dim=1, keepdim=True) * codebook.norm(dim=1) + half
    # Splitting loses 3 * 2^-22 of a product; summing D of them, and the norm, at most D * 2^-24 each way.
    return half - z @ codebook.T, (z.shape[1] / 2 + 8) * EPS * size


def assert_nearest(index, z, codebook, dot=False, unequal=0.01):
    """The float64 argmin, but for rows whose two best scores float32 cannot tell apart, and those are few."""
    assert index.dtype == torch.int64
    assert index.shape == (len(z),)
    score, error = scores(z, codebook, dot)
    best = score.argmin(1, keepdim=True)
    gap = (score.gather(1, index[:, None]) - score.gather(1, best))[:, 0]
    assert bool((gap <= (error.gather(1, index[:, None]) + error.gather(1, best))[:, 0]).all())
    assert float((index != best[:, 0]).double().mean()) <= unequal


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize(
    ("count", "size", "dim", "offset"),
    [
        (1, 1, 1, 0),
        (129, 65, 8, 0),
        (257, 300, 5, 0),
        (64, 128, 16, 3),
        (130, 257, 33, 0),
        (70, 130, 64, 0),
        (70, 130, 100, 0),
        (33, 140, 520, 0),
        (3, 500, 31, 0),
    ],
)
def test_nearest_is_the_float64_argmin_except_at_provable_ties(count, size, dim, offset, dot):
    z, codebook = torch.randn(count, dim) + offset, torch.randn(size, dim) + offset
    assert_nearest(nearest_cuda(z, codebook, dot), z, codebook, dot)


@pytest.mark.parametrize("dim", [24, 80])
def test_one_tf32_product_would_not_do(dim, monkeypatch):
    z, codebook = torch.randn(100, dim) + 5, torch.randn(150, dim) * 0.1 + 5
    assert_nearest(nearest_cuda(z, codebook, False), z, codebook)
    prepared = nearest_file.prepare

    def without_the_rest(*arguments):
        split = prepared(*arguments)
        return split._replace(lo=torch.zeros_like(split.lo))

    monkeypatch.setattr(nearest_file, "prepare", without_the_rest)
    with pytest.raises(AssertionError):
        assert_nearest(nearest_cuda(z, codebook, False), z, codebook)


@pytest.mark.parametrize("dim", [8, 40, 70])
def test_bf16_is_exact_for_what_bf16_holds_and_near_for_the_rest(dim):
    z, codebook = torch.randn(140, dim) + 2, torch.randn(150, dim) + 2
    low, low_codebook = z.bfloat16().float(), codebook.bfloat16().float()
    assert_nearest(nearest_cuda(low, low_codebook, False, precision="bf16"), low, low_codebook)
    index = nearest_cuda(z, codebook, False, precision="bf16")
    assert 0.8 < float((index == nearest_cuda(z, codebook, False)).double().mean()) < 1
    with pytest.raises(AssertionError):
        assert_nearest(index, z, codebook)


def test_what_is_no_precision_is_refused():
    with pytest.raises(ValueError, match=r"precision 'fp8'.*tf32x3 or bf16"):
        nearest_cuda(torch.zeros(1, 2), torch.zeros(1, 2), False, precision="fp8")


@pytest.mark.parametrize(("dim", "part_bytes"), [(3, 1), (70, 2**24)])
def test_ties_go_to_the_lowest_index_within_a_tile_across_shares_and_across_parts(dim, part_bytes, monkeypatch):
    monkeypatch.setattr(nearest_file, "_PART_BYTES", part_bytes)
    row = torch.randn(7, dim)
    codebook = row.repeat(30, 1)[:200]
    assert splits_of(1, 4, 2) > 1, "one block of rows is to be shared by several programs"
    assert nearest_cuda(row, codebook, False).tolist() == list(range(7))
    assert nearest_cuda(row, codebook.flip(0), False).tolist() == [(199 - i) % 7 for i in range(7)]
    zero = torch.zeros(5, dim)
    assert nearest_cuda(zero, codebook, True).tolist() == [0] * 5
    signed = torch.zeros(200, dim)
    signed[1::2] = -0.0
    assert nearest_cuda(torch.randn(5, dim), signed, True).tolist() == [0] * 5


@pytest.mark.parametrize("dot", [False, True])
def test_shares_and_parts_change_nothing(dot, monkeypatch):
    z, codebook = torch.randn(40, 20), torch.randn(320, 20)
    shared = nearest_cuda(z, codebook, dot)
    monkeypatch.setattr(nearest_file, "_PART_BYTES", 1)
    parts = nearest_cuda(z, codebook, dot)
    monkeypatch.undo()
    monkeypatch.setattr(nearest_file, "splits_of", lambda *_: 1)
    assert torch.equal(nearest_cuda(z, codebook, dot), shared)
    assert torch.equal(parts, shared)
    assert_nearest(shared, z, codebook, dot)


def test_shares_take_the_least_time():
    assert splits_of(1000, 64, 264) == 1
    assert splits_of(64, 128, 264) == 4
    assert splits_of(1, 1, 264) == 1
    assert splits_of(1, 100, 264) == 25


def assert_residual(codes, q, z, codebooks):
    assert codes.shape == (len(z), len(codebooks))
    rest, total = z.clone(), torch.zeros_like(z)
    for level, codebook in enumerate(codebooks):
        assert_nearest(codes[:, level], rest, codebook)
        rest -= codebook[codes[:, level]]
        total += codebook[codes[:, level]]
    assert torch.equal(q, total)


@pytest.mark.parametrize(
    ("count", "levels", "size", "dim"),
    [(129, 3, 70, 5), (40, 8, 33, 16), (130, 2, 200, 31), (100, 3, 65, 64), (70, 3, 130, 96), (65, 2, 129, 150)],
)
def test_residual_takes_the_nearest_row_of_what_is_left(count, levels, size, dim, monkeypatch):
    z = torch.randn(count, dim)
    codebooks = torch.randn(levels, size, dim) * torch.logspace(0, -1, levels)[:, None, None]
    kept = z.clone()
    codes, q = residual_encode_cuda(z, codebooks)
    assert torch.equal(z, kept), "the input is not to be written"
    assert_residual(codes, q, z, codebooks)
    monkeypatch.setattr(residual_file, "_MOST_BYTES", 0)
    by_levels, by_levels_q = residual_encode_cuda(z, codebooks)
    assert_residual(by_levels, by_levels_q, z, codebooks)
    assert torch.equal(codes, by_levels)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 2, 7), (40, 3), (2,) * 40, (200, 200, 200)])
@pytest.mark.parametrize("count", [1, 600])
def test_scalar_counts_thresholds(levels, count):
    most = max(levels) - 1
    threshold = torch.full((len(levels), most), INF)
    for row, level in zip(threshold, levels, strict=True):
        row[: level - 1] = torch.linspace(-2, 2, level - 1) if level > 2 else 0.0
    level = torch.tensor(levels)
    center, half = (level // 2).float(), (level // 2 + 0.5).float()
    z = 1.5 * torch.randn(count, len(levels))
    z[0] = threshold[:, 0]  # equal counts as above
    z[-1, 0] = INF
    digit = (z.clamp(max=3e38)[..., None] >= threshold).sum(-1)
    assert int(digit[-1, 0]) == levels[0] - 1
    q, codes = scalar_quantize_cuda(z, threshold, level, center, half)
    assert torch.equal(q, (digit - center) / half)
    basis = [math.prod(levels[:i]) for i in range(len(levels))]
    assert codes.tolist() == [sum(d * b for d, b in zip(row, basis, strict=True)) for row in digit.tolist()]


def test_scalar_takes_nan_and_minus_infinity_as_the_lowest_digit():
    threshold, level = torch.tensor([[-1.0, 1.0]]), torch.tensor([3])
    q, codes = scalar_quantize_cuda(torch.tensor([[NAN], [-INF], [0.0]]), threshold, level, level // 2, level // 2)
    assert codes.tolist() == [0, 0, 1]
    assert q[:, 0].tolist() == [-1, -1, 0]


@pytest.mark.parametrize("msb", [True, False])
@pytest.mark.parametrize(("dim", "streams"), [(18, 1), (18, 2), (1, 1), (31, 1), (32, 1), (62, 1), (124, 2), (12, 4)])
def test_signs_are_packed(dim, streams, msb):
    z = torch.randn(333, dim)
    z[0], z[1], z[2], z[3] = 0.0, -0.0, 1.0, NAN
    q, codes = sign_quantize_cuda(z, 0.3, streams, msb)
    bit = z > 0
    assert torch.equal(q, torch.where(bit, 0.3, -0.3))
    group = dim // streams
    texts = [["".join(str(int(b)) for b in part) for part in row.split(group)] for row in bit]
    expected = [[int(text if msb else text[::-1], 2) for text in row] for row in texts]
    assert codes.tolist() == expected
    assert codes[2].tolist() == [2**group - 1] * streams


def test_nothing_in_nothing_out():
    z = torch.zeros(0, 4)
    assert nearest_cuda(z, torch.randn(3, 4), False).shape == (0,)
    codes, q = residual_encode_cuda(z, torch.randn(2, 3, 4))
    assert codes.shape == (0, 2)
    assert q.shape == (0, 4)
    q, codes = sign_quantize_cuda(z, 1.0, 2, True)
    assert q.shape == (0, 4)
    assert codes.shape == (0, 2)
    level = torch.full((4,), 3)
    q, codes = scalar_quantize_cuda(z, torch.zeros(4, 2), level, level // 2, level // 2)
    assert q.shape == (0, 4)
    assert codes.shape == (0,)
