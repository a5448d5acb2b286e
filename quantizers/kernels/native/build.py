"""C++ sources as a library of functions: compiled once by the system's compiler, cached, loaded.

No compiler, or a compiler that fails, is said once; then PyTorch serves.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

__all__ = ["NativeLibrary", "cache_folder"]

# Headers that every library may include.
_SHARED = Path(__file__).parent
# -ffp-contract=fast only lets a multiply and an add become one fused instruction; nothing is reordered.
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
# The name of libgomp is that of the copy which torch has loaded already, so the linker takes that one: one pool.
_OPENMP = "-fopenmp"
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}


class NativeLibrary:
    """A folder of C++ sources, compiled and loaded when it is first asked for.

    sources     the folder
    name        of the file in it that includes all others, without .cpp
    signatures  of every entry point, the types of its arguments: p a pointer, n an int64, i an int, f a float; a type
                after "=" is that of the result
    """

    def __init__(self, sources: Path, name: str, signatures: Mapping[str, str]) -> None:
        self.sources, self.name, self.signatures = sources, name, signatures
        self._loaded: tuple[ctypes.CDLL | None, str] | None = None

    def available(self) -> bool:
        """Whether it can be used; the first call may compile it, which takes some seconds."""
        return self._attempt()[0] is not None

    def why_not(self) -> str:
        """Why it cannot be used; empty if it can."""
        return self._attempt()[1]

    def library(self) -> ctypes.CDLL | None:
        """The loaded library, or None."""
        return self._attempt()[0]

    def forget(self) -> None:
        """Try again when next asked, for instance in another environment."""
        self._loaded = None

    def build(self, folder: Path, *extra: str) -> Path:
        """Compile into the folder unless that was done before; returns the library's path.

        extra  more compiler flags, e.g. definitions for tests

        `RuntimeError` where there is no compiler or it fails; `OSError` where the folder cannot be written.
        """
        compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "c++", "clang++"))), None)
        if compiler is None:
            raise RuntimeError("no C++ compiler was found (g++, c++, clang++ or $CXX)")
        flags = (*_FLAGS, *extra)
        path = folder / f"{self.name}-{self._digest(compiler, flags)}.so"
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        # Compiled beside its place and moved there in one step: processes that start together cannot see half a file.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = Path(scratch) / path.name
            source, includes = self.sources / f"{self.name}.cpp", [f"-I{self.sources}", f"-I{_SHARED}"]
            command = [compiler, *flags, *includes, str(source), "-o", str(output)]
            done = subprocess.run([*command, _OPENMP], capture_output=True, text=True)
            if done.returncode:  # a compiler without OpenMP still gives kernels of one thread
                done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[-500:]}")
            output.replace(path)
        return path

    def load(self, path: Path) -> ctypes.CDLL:
        """Load a compiled library and state the types of its functions."""
        code = ctypes.CDLL(str(path))
        for name, letters in self.signatures.items():
            arguments, _, result = letters.partition("=")
            function = getattr(code, name)
            function.argtypes = [_TYPES[letter] for letter in arguments]
            function.restype = _TYPES.get(result)
        return code

    def _attempt(self) -> tuple[ctypes.CDLL | None, str]:
        """The library, or None and why not, which is said as a warning unless somebody wants it so."""
        if self._loaded is None:
            if os.environ.get("TOKENIZERS_MM_NATIVE") == "0":
                self._loaded = None, "TOKENIZERS_MM_NATIVE=0"
                return self._loaded
            try:
                self._loaded = self.load(self.build(cache_folder())), ""
            except (OSError, RuntimeError) as error:
                self._loaded = None, str(error)
                text = f"C++ {self.name} are not used, PyTorch is slower: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=3)
        return self._loaded

    def _digest(self, compiler: str, flags: tuple[str, ...]) -> str:
        """Of everything that the compiled library depends on."""
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        digest = hashlib.sha256(version.encode() + " ".join(flags).encode())
        folders = dict.fromkeys((self.sources, _SHARED))
        for source in (path for folder in folders for kind in ("*.cpp", "*.h") for path in sorted(folder.glob(kind))):
            digest.update(source.read_bytes())
        return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Folder of compiled libraries: $TOKENIZERS_MM_CACHE, or tokenizers-mm in the user's cache folder."""
    if chosen := os.environ.get("TOKENIZERS_MM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenizers-mm"
