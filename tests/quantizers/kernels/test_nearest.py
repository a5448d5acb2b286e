"""Nearest row: every implementation against float64, on odd shapes, with ties, and at the edges."""

import sys
import warnings
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantizers import kernels
from quantizers.kernels import native
from quantizers.kernels.native import library
from quantizers.kernels.native.build import cache_folder
from quantizers.kernels.nearest import _BLOCK_BYTES, nearest_reference

SHAPES = [
    (1, 1, 1),
    (1, 5, 3),
    (5, 23, 2),
    (7, 24, 8),
    (97, 25, 8),
    (96, 64, 9),
    (191, 1000, 33),
    (13, 777, 130),
    (100, 400, 700),
]
NATIVE = native.available()
ISAS = [isa for isa in (0, 1, 2) if NATIVE and isa <= library.library().tmm_best_isa()]


IMPLEMENTATIONS = [
    pytest.param(nearest_reference, id="torch"),
    *(pytest.param(partial(native.nearest, isa=isa), id=f"native-isa{isa}") for isa in ISAS),
]


def assert_best(index, z, rows, dot):
    """Every chosen row is as good as the best one in float64, up to float32 rounding; nearly all are that row."""
    z, rows = z.double(), rows.double()
    score = -z @ rows.T if dot else rows.square().sum(1) / 2 - z @ rows.T
    best, where = score.min(1)
    chosen = score[torch.arange(len(z)), index]
    scale = z.norm(dim=1) * rows.norm(dim=1).max() + rows.square().sum(1).max()
    assert bool((chosen - best <= 1e-6 * scale).all())
    return int((index != where).sum())


def test_the_compiler_is_there():
    """On a machine with a compiler the native kernels must not silently be missing."""
    assert NATIVE, native.why_not()


@pytest.mark.parametrize("search", IMPLEMENTATIONS)
@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_finds_the_best_row(search, dot, shape):
    count, size, dim = shape
    for scale in (1.0, 1e-3, 1e3):
        z, rows = torch.randn(count, dim) * scale, torch.randn(size, dim)
        index = search(z, rows, dot)
        assert index.dtype == torch.int64
        assert bool(((index >= 0) & (index < size)).all())
        assert assert_best(index, z, rows, dot) <= 0.01 * count


@pytest.mark.parametrize("search", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [3, 24, 100, 999])
def test_ties_go_to_the_lowest_row(search, size):
    # Whole numbers: every product and sum is exact, so equal scores are equal in every order of summation.
    rows, z = torch.randint(-2, 3, (size, 4)).float().repeat(3, 1), torch.randint(-3, 4, (211, 4)).float()
    for dot in (False, True):
        score = -z @ rows.T + (0 if dot else rows.square().sum(1) / 2)
        tied = score == score.min(1, keepdim=True).values
        assert int(tied.sum()) >= 3 * len(z)
        assert torch.equal(search(z, rows, dot), torch.where(tied, torch.arange(3 * size), 3 * size).min(1).values)


@pytest.mark.parametrize("search", IMPLEMENTATIONS)
def test_the_size_of_a_chunk_of_rows_is_no_limit(search):
    """More rows than are packed at a time, the best ones in the last chunk."""
    rows = torch.randn(3000, 300) + 10
    rows[-5:] = torch.randn(5, 300)
    z = rows[-5:] + 0.01 * torch.randn(5, 300)
    assert search(z, rows, False).tolist() == list(range(2995, 3000))


def test_the_shapes_of_avx512_give_the_same_on_any_processor(monkeypatch):
    """The 16-lane code, compiled for AVX2 so that it can run here."""
    if not ISAS or max(ISAS) < 1:
        pytest.skip("needs AVX2")
    wide = library.KERNELS.load(library.KERNELS.build(cache_folder(), "-DTMM_WIDE_ON_AVX2"))
    monkeypatch.setattr(sys.modules["quantizers.kernels.native.nearest"], "library", lambda: wide)
    for count, size, dim in SHAPES:
        z, rows = torch.randn(count, dim), torch.randn(size, dim)
        assert assert_best(native.nearest(z, rows, False, isa=2), z, rows, False) <= 0.01 * count


@pytest.mark.parametrize("backend", ["torch", *(["native"] if NATIVE else [])])
def test_public_function(backend):
    z, rows = torch.randn(40, 6, dtype=torch.float64, requires_grad=True), torch.randn(30, 6).t().contiguous().t()
    with kernels.using(backend):
        index = kernels.nearest(z[::2], rows)
        assert_best(index, z[::2].detach(), rows, False)
        assert kernels.nearest(z[:0], rows).shape == (0,)
        compiled = torch.compile(lambda a, b: kernels.nearest(a, b, metric="dot"), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(z, rows), kernels.nearest(z, rows, metric="dot"))


def test_backends_agree_but_for_ties():
    if not NATIVE:
        pytest.skip("needs a compiler")
    z, rows = torch.randn(4096, 16), torch.randn(2048, 16)
    with kernels.using("torch"):
        plain = kernels.nearest(z, rows)
    with kernels.using("native"):
        fast = kernels.nearest(z, rows)
    other = (plain != fast).nonzero()[:, 0]
    assert len(other) <= 4
    far = [(z[other].double() - rows[i[other]].double()).norm(dim=1) for i in (plain, fast)]
    torch.testing.assert_close(*far, rtol=1e-6, atol=0)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation made; views of what was there do not count."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = {argument.untyped_storage().data_ptr() for argument in args if isinstance(argument, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in there:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(("count", "size", "dim"), [(20_000, 4096, 8), (64, 300_000, 8), (100, 65_536, 64)])
def test_memory_of_the_torch_path_is_one_block(count, size, dim):
    z, rows = torch.randn(count, dim), torch.randn(size, dim)
    with LargestTensor() as largest:
        nearest_reference(z, rows, False)
    assert 0 < largest.bytes <= _BLOCK_BYTES < max(rows.nbytes, 4 * count * size / 30)


def test_registered_as_a_custom_op():
    torch.library.opcheck(torch.ops.quantizers.nearest.default, (torch.randn(9, 4), torch.randn(7, 4), False))


def test_sampling_follows_the_stated_distribution():
    torch.manual_seed(0)
    rows, z = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.4]]).repeat(200_000, 1)
    index = kernels.sample_nearest(z, rows, 2.0)
    share = torch.bincount(index, minlength=3) / len(index)
    expected = (-(z[:1] - rows.T).square() / 2.0).softmax(1)[0]
    torch.testing.assert_close(share, expected, atol=0.005, rtol=0)
    cold = kernels.sample_nearest(z[:100], rows, 1e-6)
    assert torch.equal(cold, kernels.nearest(z[:100], rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(2, 3)), r"z_ND has shape \(3,\)"),
        ((torch.zeros(3, 2), torch.zeros(2, 3)), r"codebook_KD \(2, 3\).*\[K, D\]"),
        ((torch.zeros(3, 2), torch.zeros(0, 2)), "no rows"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.nearest(*arguments)


def test_bad_options():
    z = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="metric 'cosine'"):
        kernels.nearest(z, z, metric="cosine")
    with pytest.raises(ValueError, match="temperature=0"):
        kernels.sample_nearest(z, z, 0)
    with pytest.raises(ValueError, match="backend 'metal'"), kernels.using("metal"):
        pass


def test_without_a_compiler_torch_serves_and_it_is_said_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("TOKENIZERS_MM_CACHE", str(tmp_path / "cache"))
    library.KERNELS.forget()
    try:
        with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler was found"):
            assert not native.available()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not native.available()
        z = torch.randn(5, 3)
        assert kernels.backend(z.device) == "torch"
        assert kernels.nearest(z, z).tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="'native' is not available"), kernels.using("native"):
            pass
    finally:
        library.KERNELS.forget()


def test_a_compiler_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(RuntimeError, match="false failed"):
        library.KERNELS.build(tmp_path)
    assert not list(tmp_path.glob("*.so"))
