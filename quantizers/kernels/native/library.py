"""Build the C++ kernels once with the system's compiler, cache the library, load it.

The library holds every kernel for AVX-512, for AVX2 and for any processor; which one runs is decided when it is called.
No compiler, or a compiler that fails, is said once; then the PyTorch path serves.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from torch import Tensor

SOURCES = Path(__file__).parent
# -ffp-contract=fast only lets a multiply and an add become one fused instruction; nothing is reordered.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
# The name of libgomp is that of the copy which torch has loaded already, so the linker takes that one: one pool.
OPENMP = "-fopenmp"


def available() -> bool:
    """Whether the C++ kernels can be used; the first call may compile them, which takes some seconds."""
    return library() is not None


def why_not() -> str:
    """Why the kernels are not available; empty if they are."""
    return _load()[1]


def library() -> ctypes.CDLL | None:
    """Return the loaded library, or None."""
    return _load()[0]


def cache_folder() -> Path:
    """Folder of compiled libraries: $TOKENIZERS_MM_CACHE, or tokenizers-mm in the user's cache folder."""
    if chosen := os.environ.get("TOKENIZERS_MM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenizers-mm"


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    return attempt(lambda: load(build(cache_folder())), "kernels")


def attempt(make: Callable[[], ctypes.CDLL], what: str) -> tuple[ctypes.CDLL | None, str]:
    """The library that `make` gives, or None and why not, which is said as a warning unless somebody wants it so."""
    if os.environ.get("TOKENIZERS_MM_NATIVE") == "0":
        return None, "TOKENIZERS_MM_NATIVE=0"
    try:
        return make(), ""
    except (OSError, RuntimeError) as error:
        reason = str(error)
    warnings.warn(f"C++ {what} are not used, PyTorch is slower: {reason}", RuntimeWarning, stacklevel=3)
    return None, reason


def build(folder: Path, *extra: str, sources: Path = SOURCES, name: str = "kernels") -> Path:
    """Compile into the folder unless that was done before; returns the library's path.

    extra          more compiler flags, e.g. definitions for tests
    sources, name  folder of the sources, and of its file that includes all others, without .cpp

    `RuntimeError` where there is no compiler or it fails; `OSError` where the folder cannot be written.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "c++", "clang++"))), None)
    if compiler is None:
        raise RuntimeError("no C++ compiler was found (g++, c++, clang++ or $CXX)")
    flags = (*FLAGS, *extra)
    digest = hashlib.sha256(_version(compiler).encode() + " ".join(flags).encode())
    for source in sorted([*sources.glob("*.cpp"), *sources.glob("*.h")]):
        digest.update(source.read_bytes())
    path = folder / f"{name}-{digest.hexdigest()[:16]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Compiled beside its place and moved there in one step: processes that start together cannot see half a file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / path.name
        command = [compiler, *flags, str(sources / f"{name}.cpp"), "-o", str(output)]
        done = subprocess.run([*command, OPENMP], capture_output=True, text=True)
        if done.returncode:  # a compiler without OpenMP still gives kernels of one thread
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[-500:]}")
        output.replace(path)
    return path


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def pointer(tensor: Tensor) -> int:
    """Address of a contiguous tensor's data."""
    assert tensor.is_contiguous()
    return tensor.data_ptr()


# Argument types of every entry point in kernels.cpp: p a pointer, n an int64, i an int, f a float.
_SIGNATURES = {
    "tmm_best_isa": "=i",
    "tmm_nearest": "pppnnniii",
    "tmm_residual_encode": "pppppnnnii",
    "tmm_sign_quantize": "pppnifiii",
    "tmm_scalar_quantize": "pppppppnnnii",
}
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}


def load(path: Path, signatures: Mapping[str, str] = _SIGNATURES) -> ctypes.CDLL:
    """Load a compiled library and state the types of its functions; a type after "=" is that of the result."""
    code = ctypes.CDLL(str(path))
    for name, letters in signatures.items():
        arguments, _, result = letters.partition("=")
        function = getattr(code, name)
        function.argtypes = [_TYPES[letter] for letter in arguments]
        function.restype = _TYPES.get(result)
    return code
