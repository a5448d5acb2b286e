"""Scalar quantization: every implementation gives the bits of the definition, on odd shapes and at the edges."""

import sys
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantizers import kernels
from quantizers.kernels import native
from quantizers.kernels.native import library
from quantizers.kernels.native.build import cache_folder
from quantizers.kernels.scalar import _BLOCK_BYTES, scalar_quantize_reference

NATIVE = native.available()
ISAS = [isa for isa in (0, 1, 2) if NATIVE and isa <= library.library().tmm_best_isa()]
IMPLEMENTATIONS = [
    pytest.param(scalar_quantize_reference, id="torch"),
    *(pytest.param(partial(native.scalar_quantize, isa=isa), id=f"native-isa{isa}") for isa in ISAS),
]
# Thresholds counted and searched by halving, on both sides of where each implementation changes over; codes that need
# 32 and 64 bits.
LEVELS = [
    *([3] * dim for dim in range(1, 18)),
    *([[2, 1000, 17, 18][i % 4] for i in range(dim)] for dim in range(1, 10)),
    *([level, 2, level] for level in (16, 17, 18, 63, 64, 65, 66, 127, 128, 129, 512, 513, 1000)),
    [8, 5, 5, 5],
    [8, 8, 8, 5, 5, 5],
    [1000] * 6,
    [2] * 62,
    [2] * 31,
    [2] * 32,
]
COUNTS = [1, 2, 5, 31, 64, 65, 257, 2049]


def constants(levels):
    """Random thresholds, level, center, half of channels, in the layout of the kernel."""
    threshold_DT = torch.full((len(levels), max(levels) - 1), float("inf"))
    for row_T, level in zip(threshold_DT, levels, strict=True):
        row_T[: level - 1] = torch.randn(level - 1).sort().values
    level_D = torch.tensor(levels)
    return threshold_DT, level_D, (level_D - 1) / 2, torch.rand(len(levels)) + 0.3


def definition(z_ND, threshold_DT, level_D, center_D, half_D):
    """Number by number, no vectors."""
    q_ND, codes = torch.empty_like(z_ND), []
    for n, row in enumerate(z_ND.tolist()):
        code, basis = 0, 1
        for d, value in enumerate(row):
            digit = sum(value >= t for t in threshold_DT[d, : level_D[d] - 1].tolist())
            q_ND[n, d] = (torch.tensor(float(digit)) - center_D[d]) / half_D[d]
            code, basis = code + digit * basis, basis * int(level_D[d])
        codes.append(code)
    return q_ND, torch.tensor(codes)


def vectors(count, threshold_DT):
    """Random numbers, a third of them exactly on a threshold."""
    z_ND = torch.randn(count, len(threshold_DT))
    pick_DN = torch.randint(threshold_DT.shape[1], (len(threshold_DT), count))
    edge_ND = threshold_DT.gather(1, pick_DN).T
    return torch.where((torch.rand_like(z_ND) < 1 / 3) & edge_ND.isfinite(), edge_ND, z_ND).contiguous()


def assert_same_bits(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("quantize", IMPLEMENTATIONS)
@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 40, 3], [70, 2, 5, 3, 2]], ids=str)
def test_equals_the_definition(quantize, levels):
    channels = constants(levels)
    z_ND = vectors(37, channels[0])
    assert_same_bits(quantize(z_ND, *channels), definition(z_ND, *channels))


@pytest.mark.parametrize("quantize", IMPLEMENTATIONS[1:])
def test_native_gives_the_bits_of_the_reference(quantize):
    for levels in LEVELS:
        channels = constants(levels)
        for count in COUNTS:
            z_ND = vectors(count, channels[0])
            assert_same_bits(quantize(z_ND, *channels), scalar_quantize_reference(z_ND, *channels))


def test_the_shapes_of_avx512_give_the_same_on_any_processor(monkeypatch):
    """The 16-lane code, compiled for AVX2 so that it can run here."""
    if not ISAS or max(ISAS) < 1:
        pytest.skip("needs AVX2")
    wide = library.KERNELS.load(library.KERNELS.build(cache_folder(), "-DTMM_WIDE_ON_AVX2"))
    monkeypatch.setattr(sys.modules["quantizers.kernels.native.scalar"], "library", lambda: wide)
    test_native_gives_the_bits_of_the_reference(partial(native.scalar_quantize, isa=2))


@pytest.mark.parametrize("quantize", IMPLEMENTATIONS)
def test_no_value_leaves_the_levels(quantize):
    """A short row's padding must count for nothing, infinity included; NaN counts as the lowest digit."""
    for levels in ([2, 9, 4], [2, 900, 70]):
        channels = constants(levels)
        most = torch.finfo(torch.float32).max
        edges = torch.tensor([float("inf"), most, -most, -float("inf"), float("nan")])
        q_ND, codes_N = quantize(edges[:, None].repeat(1, 3), *channels)
        last = levels[0] * levels[1] * levels[2] - 1
        assert codes_N.tolist() == [last, last, 0, 0, 0]
        assert bool(q_ND.isfinite().all())


@pytest.mark.parametrize("quantize", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [7] * 5, [3] * 16], ids=str)
def test_large_results_on_two_threads(quantize, levels):
    """Results that are stored around the caches."""
    channels = constants(levels)
    z_ND = torch.randn((28 << 20) // (4 * len(levels) + 8) + 3, len(levels))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ours = quantize(z_ND, *channels)
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(ours, scalar_quantize_reference(z_ND, *channels))


@pytest.mark.parametrize("backend", ["torch", *(["native"] if NATIVE else [])])
def test_public_function(backend):
    channels = constants([8, 5, 5, 5])
    z_ND = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)[:, ::2]
    with kernels.using(backend):
        q_ND, codes_N = kernels.scalar_quantize(z_ND, *channels)
        assert_same_bits((q_ND, codes_N), scalar_quantize_reference(z_ND.detach().float(), *channels))
        assert not q_ND.requires_grad
        q_none, codes_none = kernels.scalar_quantize(z_ND[:0], *channels)
        assert q_none.shape == (0, 4)
        assert codes_none.shape == (0,)
        compiled = torch.compile(kernels.scalar_quantize, fullgraph=True, backend="aot_eager")
        assert_same_bits(compiled(z_ND, *channels), (q_ND, codes_N))


def test_registered_as_a_custom_op():
    torch.library.opcheck(torch.ops.quantizers.scalar_quantize.default, (torch.randn(9, 4), *constants([8, 5, 5, 5])))


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation made, results aside."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = isinstance(out, torch.Tensor) and func not in (
            torch.ops.aten.empty_like.default,
            torch.ops.aten.empty.memory_format,
        )
        if made and not func.is_view:
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [100, 100]], ids=str)
def test_memory_of_the_torch_path_is_one_block(levels):
    z_ND, channels = torch.randn(400_000, len(levels)), constants(levels)
    with LargestTensor() as largest:
        scalar_quantize_reference(z_ND, *channels)
    assert 0 < largest.bytes <= _BLOCK_BYTES < 8 * z_ND.numel() / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_ND": torch.zeros(3)}, r"z_ND is torch.float32 of shape \(3,\): expected a float type, \[N, D\]"),
        ({"z_ND": torch.zeros(3, 2, dtype=torch.int64)}, r"z_ND is torch.int64"),
        ({"threshold_DT": torch.zeros(3, 4)}, r"threshold_DT has shape \(3, 4\): expected \[2, T\]"),
        ({"threshold_DT": torch.zeros(2, 0)}, r"threshold_DT has shape \(2, 0\).*T >= 1"),
        ({"level_D": torch.ones(3, dtype=torch.int64)}, r"level_D has shape \(3,\): expected \[2\]"),
        ({"center_D": torch.ones(1)}, r"center_D has shape \(1,\)"),
        ({"half_D": torch.ones(2, 1)}, r"half_D has shape \(2, 1\)"),
    ],
)
def test_bad_input(change, message):
    good = dict(zip(("threshold_DT", "level_D", "center_D", "half_D"), constants([3, 3]), strict=True))
    with pytest.raises(ValueError, match=message):
        kernels.scalar_quantize(**({"z_ND": torch.zeros(5, 2)} | good | change))
