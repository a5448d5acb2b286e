"""Ahead-of-time compilation of the Triton kernels for sm_80 and sm_90: what they take of a multiprocessor.

No GPU is needed. This shows that they compile, do not spill, fit, and use the matrix instruction meant; not that they
are fast or right.
"""
# ruff: noqa: E402  (without Triton there is nothing to import)

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quantizers.kernels.cuda.bits import sign_kernel
from quantizers.kernels.cuda.nearest import nearest_kernel
from quantizers.kernels.cuda.residual import residual_kernel
from quantizers.kernels.cuda.scalar import scalar_kernel
from quantizers.kernels.cuda.search import prepare_kernel
from quantizers.kernels.cuda.tiles import residual_tile_of, tile_of

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED = {80: 164 * 1024, 90: 228 * 1024}  # bytes of a multiprocessor, of which each program reserves 1024
SMALLEST = {80: 99 * 1024, 90: 227 * 1024}  # most bytes of a program; sm_86 and sm_89 run what is made for sm_80
REGISTERS = 65536
EXACT = {
    80: "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    90: "wgmma.mma_async.sync.aligned.m64n{n}k8.f32.tf32",
}
LOW = {
    80: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    90: "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16",
}


class Resources(NamedTuple):
    registers: int
    stack: int
    local: int
    shared: int
    ptx: str

    def resident(self, warps, architecture):
        """Programs that a multiprocessor holds at a time; registers are given to a warp in units of 256."""
        per_warp = -(-self.registers * 32 // 256) * 256
        return min(REGISTERS // (per_warp * warps), SHARED[architecture] // (self.shared + 1024), 64 // warps)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Function (kernel, pointers, integers, constants, architecture, warps, stages) that gives the resources."""
    folder = tmp_path_factory.mktemp("triton")
    before = os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = str(folder)

    def build(kernel, pointers, aligned, constants, architecture, warps, stages=3):
        signature = pointers | dict.fromkeys(constants, "constexpr")
        signature |= {name: "i32" for name in kernel.arg_names if name not in signature}
        places = {name: i for i, name in enumerate(kernel.arg_names)}
        source = ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={(places[name],): value for name, value in constants.items()},
            attrs={(places[name],): [["tt.divisibility", 16]] for name in (*pointers, *aligned) if name != "scale"},
        )
        target = GPUTarget("cuda", architecture, 32)
        binary = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
        (folder / "kernel.cubin").write_bytes(binary.asm["cubin"])
        tool = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(folder / "kernel.cubin")]
        report = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
        registers, stack, local = (int(re.search(rf"{k}:(\d+)", report)[1]) for k in ("REG", "STACK", "LOCAL"))
        return Resources(registers, stack, local, binary.metadata.shared, binary.asm["ptx"])

    yield build
    if before is None:
        del os.environ["TRITON_CACHE_DIR"]
    else:
        os.environ["TRITON_CACHE_DIR"] = before


def assert_fits(found, architecture, budget):
    assert found.registers <= min(budget, 255), "more registers than the table of tiles was made for"
    assert found.stack == 0, "registers spill"
    assert found.local == 0, "registers spill"
    assert found.shared <= SMALLEST[architecture]


def assert_multiplies(found, architecture, tile, instruction, times):
    """It is the tensor cores' instruction, as often as the channels of a block take, and none of another kind."""
    name = instruction[architecture].format(n=tile.codes)
    assert name in found.ptx
    kinds = set(re.findall(r"(?:mma\.sync|wgmma\.mma_async)\.sync\S*|mma\.sync\.aligned\.m\S*", found.ptx))
    assert all(kind.startswith(name) for kind in kinds), kinds
    assert len(re.findall(re.escape(name), found.ptx)) % times == 0


def search_pointers(exact):
    split = "*fp32" if exact else "*bf16"
    return {"hi_ptr": split, "lo_ptr": split, "half_ptr": "*fp32"}


# Registers as measured with Triton 3.8, and a little more: another compiler may allocate otherwise.
@pytest.mark.parametrize(
    ("architecture", "dim", "precision", "registers"),
    [
        (80, 8, "tf32x3", 128),
        (80, 32, "tf32x3", 128),
        (80, 100, "tf32x3", 255),
        (80, 256, "tf32x3", 248),
        (80, 64, "bf16", 124),
        (80, 250, "bf16", 170),
        (90, 8, "tf32x3", 124),
        (90, 32, "tf32x3", 108),
        (90, 64, "tf32x3", 120),
        (90, 100, "tf32x3", 252),
        (90, 768, "tf32x3", 246),
        (90, 32, "bf16", 70),
        (90, 250, "bf16", 177),
    ],
)
def test_nearest(compiled, architecture, dim, precision, registers):
    exact = precision == "tf32x3"
    tile = tile_of(dim, architecture == 90, precision)
    channels = -(-dim // tile.channels) * tile.channels
    even = not exact or dim == channels  # vectors in bfloat16 come padded
    constants = {"DP": channels, "R": tile.rows, "C": tile.codes, "H": tile.channels, "EVEN": even}
    constants |= {"EXACT": exact, "SHARED": True, "UPCAST": False}
    pointers = {"z_ptr": "*fp32" if exact else "*bf16", "out_ptr": "*i64"} | search_pointers(exact)
    aligned = ["D"] if even and channels % 16 == 0 else []
    found = compiled(nearest_kernel, pointers, aligned, constants, architecture, tile.warps, tile.stages)
    assert_fits(found, architecture, registers + 4)
    assert found.resident(tile.warps, architecture) >= tile.resident
    assert_multiplies(found, architecture, tile, EXACT if exact else LOW, 3 if exact else 1)


@pytest.mark.parametrize(
    ("architecture", "dim", "registers"),
    [(80, 8, 168), (80, 32, 168), (80, 64, 254), (80, 256, 230), (90, 8, 156), (90, 64, 224), (90, 256, 247)],
)
def test_residual(compiled, architecture, dim, registers):
    tile = residual_tile_of(dim, architecture == 90)
    constants = {"D": dim, "R": tile.rows, "C": tile.codes, "H": tile.channels}
    pointers = {"rest_ptr": "*fp32", "sum_ptr": "*fp32", "e_ptr": "*fp32", "code_ptr": "*i64"} | search_pointers(True)
    found = compiled(residual_kernel, pointers, ["KP"], constants, architecture, tile.warps, tile.stages)
    assert_fits(found, architecture, registers + 4)
    assert found.resident(tile.warps, architecture) >= tile.resident
    assert_multiplies(found, architecture, tile, EXACT, 3)
    # Where all channels are one block, the residual is read and the sum written once, outside the loop over levels.
    assert (dim <= 64) == (tile.channels == dim)


@pytest.mark.parametrize("exact", [True, False])
def test_prepare(compiled, exact):
    constants = {"R": 32, "H": 32, "EXACT": exact, "DOT": False}
    pointers = {"e_ptr": "*fp32"} | search_pointers(exact)
    found = compiled(prepare_kernel, pointers, ["KP", "D", "DP"], constants, 80, 4)
    assert_fits(found, 80, 64)


@pytest.mark.parametrize("architecture", [80, 90])
def test_scalar(compiled, architecture):
    pointers = dict.fromkeys(("z_ptr", "threshold_ptr", "center_ptr", "half_ptr", "q_ptr"), "*fp32")
    pointers |= {"level_ptr": "*i64", "code_ptr": "*i64"}
    found = compiled(scalar_kernel, pointers, [], {"D": 6, "R": 256, "H": 8}, architecture, 4)
    assert_fits(found, architecture, 128)


@pytest.mark.parametrize(("architecture", "group"), [(80, 18), (90, 18), (90, 62)])
def test_signs(compiled, architecture, group):
    width = triton.next_power_of_2(group)
    constants = {"G": group, "R": 2048 // width, "H": width, "MSB": True}
    pointers = {"z_ptr": "*fp32", "q_ptr": "*fp32", "code_ptr": "*i64", "scale": "fp32"}
    found = compiled(sign_kernel, pointers, [], constants, architecture, 4)
    assert_fits(found, architecture, 96)


def test_integers_that_equal_one_may_become_constants(compiled):
    """As Triton makes them at a launch, where the interpreter does not: one vector, one row, one channel, one level."""
    tile = tile_of(1, False)
    constants = {"R": tile.rows, "C": tile.codes, "H": tile.channels}
    pointers = {"z_ptr": "*fp32", "out_ptr": "*i64"} | search_pointers(True)
    ones = dict.fromkeys(("N", "D", "base", "tiles", "share"), 1)
    flags = {"DP": 8, "EVEN": False, "EXACT": True, "SHARED": True, "UPCAST": False}
    assert_fits(compiled(nearest_kernel, pointers, [], constants | ones | flags, 80, tile.warps), 80, 128)
    pointers = {"rest_ptr": "*fp32", "sum_ptr": "*fp32", "e_ptr": "*fp32", "code_ptr": "*i64"} | search_pointers(True)
    ones = dict.fromkeys(("N", "K", "L"), 1)
    assert_fits(compiled(residual_kernel, pointers, ["KP"], constants | ones | {"D": 8}, 80, tile.warps), 80, 168)


def test_a_tile_too_large_is_noticed(compiled):
    tile = tile_of(64, True)._replace(warps=4)
    constants = {"D": 64, "R": tile.rows, "C": tile.codes, "H": tile.channels}
    pointers = {"rest_ptr": "*fp32", "sum_ptr": "*fp32", "e_ptr": "*fp32", "code_ptr": "*i64"} | search_pointers(True)
    found = compiled(residual_kernel, pointers, ["KP"], constants, 90, tile.warps, tile.stages)
    with pytest.raises(AssertionError, match="spill"):
        assert_fits(found, 90, 255)
