"""What the compiler made of the C++ kernels: the inner loop of the search keeps its tile in registers.

This is all that can be said of AVX-512 on a machine without it, beside the test that runs its shapes on AVX2.
"""

import re
import shutil
import subprocess

import pytest

from quantizers.kernels.native import library
from quantizers.kernels.native.build import cache_folder

# products of one step of the inner loop (ROWS x VECTORS in nearest.h), and the registers they are in
TILES = {"avx2": (12, "ymm"), "avx512": (24, "zmm")}


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """Instructions of every function, [(address, text)], by its demangled name."""
    if not shutil.which("objdump"):
        pytest.skip("needs objdump")
    path = library.KERNELS.build(cache_folder())
    listing = subprocess.run(["objdump", "-dC", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    found, current = {}, []
    for line in listing.stdout.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            current = found.setdefault(header[1], [])
        elif instruction := re.match(r"\s*([0-9a-f]+):\s+(.*)", line):
            current.append((int(instruction[1], 16), instruction[2]))
    return found


def innermost_loops(instructions):
    """Bodies that end in a conditional jump back to their start, without another such jump inside."""
    where = {address: i for i, (address, _) in enumerate(instructions)}
    for end, (_, text) in enumerate(instructions):
        jump = re.match(r"j(?!mp)\w+\s+([0-9a-f]+)", text)
        start = where.get(int(jump[1], 16)) if jump else None
        if start is not None and start < end:
            body = [text for _, text in instructions[start:end]]
            if not any(text.startswith("j") for text in body):
                yield body


@pytest.mark.parametrize("isa", TILES)
def test_inner_loop_of_the_search_stays_in_registers(functions, isa):
    products, register = TILES[isa]
    loops = [
        body
        for name, instructions in functions.items()
        if name.startswith(f"{isa}::") and "nearest" in name
        for body in innermost_loops(instructions)
        if sum("vfnmadd" in text and register in text for text in body) >= products
    ]
    assert loops
    for body in loops:
        multiplied = [text for text in body if "vfnmadd" in text]
        assert len(multiplied) == products
        assert all(register in text and "ss" not in text.split()[0] for text in multiplied)
        assert not any("%rsp" in text or "%rbp)" in text for text in body), "spills to the stack"
        assert len(body) <= 2 * products + 4
