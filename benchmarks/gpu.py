"""`make gpu`: the CUDA kernels on a real GPU in one command: parity, then timings, then how far they are from the roof.

Parity comes first, against float64 and the torch reference, eager and under torch.compile; one failure ends the run and
nothing is timed. Then the candidates of a comparison run in turns; a figure is the median, in milliseconds of the GPU
(where one waits for the GPU in the middle, its launches count as well, as they would in training). The roof is what
this card does in this run: a large matrix product, and a copy. Writes results/<date>-<card>.json.

python benchmarks/gpu.py [--quick]
"""

import argparse
import datetime
import json
import platform
import re
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import vector_quantize_pytorch as vqp
from gpu_parity import checks

from quantizers import FSQ
from quantizers.kernels import nearest, residual_encode, scalar_quantize, sign_quantize, using

OURS, THEIRS = "ours", "vector-quantize-pytorch"
NO_MEMORY = "out of memory"
PACKAGES = ("tokenizers-mm", "torch", "triton", "vector-quantize-pytorch")
FULL = {
    "search": [(n, k, d) for d in (8, 32, 256) for k in (1024, 8192, 16384, 65536) for n in (8192, 65536)],
    "residual": [(n, 8, 1024, 256) for n in (8192, 65536)] + [(65536, 8, 1024, 32)],
    "vectors": [262_144, 4_194_304],
    "bits": 18,
    "square": 8192,
    "copy": 2**28,
    "seconds": 0.3,
}
QUICK = FULL | {"search": [(8192, 8192, d) for d in (8, 32, 256)], "residual": [(8192, 8, 1024, 256)], "seconds": 0.1}


class Bench:
    """Times the candidates of a comparison in turns on one device and keeps the rows; the roof is measured first."""

    def __init__(self, device, sizes):
        self.device, self.sizes, self.rows = torch.device(device), sizes, []
        self.roof = self._roof(sizes["square"], sizes["copy"])

    def compare(self, name, candidates, *, flop=0, products=1, traffic=0):
        """Add a row for every candidate.

        flop      of the definition, for the whole call;  traffic: bytes it has to read and write at least
        products  tensor-core products that ours makes for one of the definition (3 of tf32 for one of float32)
        """
        times, memory = self.times(candidates), {candidate: self.memory(run) for candidate, run in candidates.items()}
        for candidate, ms in times.items():
            row = {"work": name, "side": candidate, "ms": ms, "extra_mib": memory[candidate]}
            if ms != NO_MEMORY and times[OURS] != NO_MEMORY:
                row["times_ours"] = ms / times[OURS]
            if candidate == OURS and ms != NO_MEMORY:
                row |= self.under_the_roof(ms, flop, products, traffic)
            self.rows.append(row)
            print(line(row), flush=True)

    def under_the_roof(self, ms, flop, products, traffic):
        row = {"gb_per_s": traffic / ms / 1e6, "of_copy": traffic / ms / 1e6 / self.roof["copy_gb_per_s"]}
        if flop:
            tflops = flop / ms / 1e9
            row |= {"tflop_per_s": tflops, "of_tf32": tflops * products / self.roof["tf32_tflop_per_s"]}
        return row

    def times(self, candidates):
        """Median milliseconds of each candidate, or that the card's memory does not hold it."""
        rounds, found = {}, {}
        for candidate, run in candidates.items():  # warms up, compiles, and finds how often to repeat
            once = self._try(lambda run=run: [run(), self.once(run, 1)][1])
            found[candidate] = [] if once is not None else NO_MEMORY
            rounds[candidate] = 1 if once is None else max(1, min(20, round(2 / max(once, 1e-3))))
        began, repeats = time.perf_counter(), 0
        while repeats < 5 or (repeats < 50 and time.perf_counter() - began < self.sizes["seconds"] * len(candidates)):
            repeats += 1
            for candidate, run in candidates.items():
                if found[candidate] is not NO_MEMORY:
                    found[candidate].append(self.once(run, rounds[candidate]))
        return {candidate: ms if ms is NO_MEMORY else statistics.median(ms) for candidate, ms in found.items()}

    def once(self, run, repeats):
        """Milliseconds of one call."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - began) * 1e3 / repeats
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(5_000_000)  # the calls queue up behind it, so that the time is the GPU's, not Python's
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    def memory(self, run):
        """Most MiB that a call holds beyond what was there before."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if self._try(lambda: [run(), 1]) is None:
            return None
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def _try(self, run):
        try:
            return run()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None

    def _roof(self, square, count):
        roof = {}
        for name, dtype, tf32 in (
            ("float32", torch.float32, False),
            ("tf32", torch.float32, True),
            ("bfloat16", torch.bfloat16, False),
        ):
            a, b = (torch.randn(square, square, device=self.device, dtype=dtype) for _ in range(2))
            with tensor_cores(tf32):
                ms = self.times({OURS: lambda a=a, b=b: a @ b})[OURS]
            roof[f"{name}_tflop_per_s"] = 2 * square**3 / ms / 1e9
        a = torch.zeros(count, device=self.device)
        b = torch.empty_like(a)
        roof["copy_gb_per_s"] = 8 * count / self.times({OURS: lambda: b.copy_(a)})[OURS] / 1e6
        return roof


class tensor_cores:  # noqa: N801
    """Allow (or forbid) tf32 in torch's own products for a while."""

    def __init__(self, allowed):
        self.wanted = allowed

    def __enter__(self):
        self.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.wanted

    def __exit__(self, *_):
        torch.backends.cuda.matmul.allow_tf32 = self.before


def split(z, codebook, tf32):
    """The usual way: a matrix of all scores, then its argmin."""
    with tensor_cores(tf32):
        return torch.addmm(codebook.square().sum(1) / 2, z, codebook.T, alpha=-1).argmin(1)


def search(bench):
    for count, size, dim in bench.sizes["search"]:
        z, codebook = (torch.randn(n, dim, device=bench.device) for n in (count, size))
        theirs = vqp.VectorQuantize(dim=dim, codebook_size=size).to(bench.device).eval()
        theirs._codebook.embed.copy_(codebook[None])
        candidates = {
            OURS: lambda z=z, e=codebook: nearest(z, e),
            "product float32, argmin": lambda z=z, e=codebook: split(z, e, False),
            "product tf32 (inexact), argmin": lambda z=z, e=codebook: split(z, e, True),
            "torch in blocks": lambda z=z, e=codebook: in_blocks(z, e),
            THEIRS: lambda z=z, module=theirs: module(z[None]),
        }
        if bench.device.type == "cuda":
            from quantizers.kernels.cuda.nearest import nearest_cuda

            candidates["ours in bf16 (inexact)"] = lambda z=z, e=codebook: nearest_cuda(z, e, False, precision="bf16")
        traffic = 4 * dim * (count + size) + 8 * count
        name = f"nearest code, N={count}, K={size}, d={dim}"
        bench.compare(name, candidates, flop=2 * count * size * dim, products=3, traffic=traffic)


def in_blocks(z, codebook):
    with using("torch"):
        return nearest(z, codebook)


def residual(bench):
    for count, levels, size, dim in bench.sizes["residual"]:
        z, codebooks = torch.randn(count, dim, device=bench.device), torch.randn(levels, size, dim, device=bench.device)
        theirs = vqp.ResidualVQ(dim=dim, num_quantizers=levels, codebook_size=size).to(bench.device).eval()
        for layer, codebook in zip(theirs.layers, codebooks, strict=True):
            layer._codebook.embed.copy_(codebook[None])
        candidates = {
            OURS: lambda z=z, e=list(codebooks): residual_encode(z, e),
            THEIRS: lambda z=z, module=theirs: module(z[None]),
        }
        flop, traffic = 2 * count * levels * size * dim, 8 * count * dim + 8 * count * levels + codebooks.nbytes
        name = f"residual, {levels} x {size}, N={count}, d={dim}"
        bench.compare(name, candidates, flop=flop, products=3, traffic=traffic)


def scalar(bench):
    for levels in ([8, 5, 5, 5], [8, 8, 8, 5, 5, 5]):
        ours, theirs = FSQ(levels).to(bench.device), vqp.FSQ(levels=levels).to(bench.device).eval()
        constants = ours.threshold_DT, ours.level_D, ours.center_D, ours.unit_D
        for count in bench.sizes["vectors"]:
            z = torch.randn(count, len(levels), device=bench.device)
            candidates = {
                OURS: lambda z=z, constants=constants: scalar_quantize(z, *constants),
                THEIRS: lambda z=z, module=theirs: module(z[None]),
            }
            bench.compare(f"FSQ {levels}, N={count}", candidates, traffic=2 * z.nbytes + 8 * count)


def sign(bench):
    dim = bench.sizes["bits"]
    theirs = vqp.LFQ(codebook_size=2**dim, dim=dim).to(bench.device).eval()
    for count in bench.sizes["vectors"]:
        z = torch.randn(count, dim, device=bench.device)
        candidates = {OURS: lambda z=z: sign_quantize(z), THEIRS: lambda z=z: theirs(z[None])}
        bench.compare(f"LFQ {dim} bits, N={count}", candidates, traffic=2 * z.nbytes + 8 * count)


COLUMNS = {
    "work": "",
    "side": "",
    "ms": ".4g",
    "times_ours": ".3g",
    "extra_mib": ".4g",
    "tflop_per_s": ".4g",
    "of_tf32": ".0%",
    "gb_per_s": ".4g",
    "of_copy": ".0%",
}
HEADS = ("work", "side", "ms", "times ours", "extra MiB", "TFLOP/s", "of tf32 product", "GB/s", "of copy")


def line(row):
    """Markdown; what a row does not have stays empty."""
    cells = ((row.get(name), form) for name, form in COLUMNS.items())
    return "| " + " | ".join("" if v is None else v if isinstance(v, str) else format(v, f) for v, f in cells) + " |"


def table(rows):
    rule = "|" + "|".join("--:" if form else "---" for form in COLUMNS.values()) + "|"
    return "\n".join(["| " + " | ".join(HEADS) + " |", rule, *map(line, rows)])


def run(device, sizes):
    """Record of a whole run; `SystemExit` at the first failure of parity."""
    parity = []
    for name, wrong, note in checks(device):
        print(f"{'FAILED' if wrong else 'ok'}  {name}  {wrong or note}", flush=True)
        parity.append({"check": name, "note": note})
        if wrong:
            raise SystemExit(f"parity failed: {name}: {wrong}; nothing was timed")
    bench = Bench(device, sizes)
    print(json.dumps(bench.roof, indent=2), flush=True)
    with torch.inference_mode():
        for work in (search, residual, scalar, sign):
            work(bench)
    return {"parity": parity, "roof": bench.roof, "rows": bench.rows}


def main(arguments=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="three searches and one residual encode, in a minute")
    quick = options.parse_args(arguments).quick
    if not torch.cuda.is_available() or torch.version.hip is not None:
        raise SystemExit("make gpu: no NVIDIA GPU that this PyTorch can use; nothing was checked or timed")
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    today, versions = datetime.date.today().isoformat(), {name: version(name) for name in PACKAGES}
    record = {
        "date": today,
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "versions": {"python": platform.python_version()} | versions,
        **run("cuda", QUICK if quick else FULL),
    }
    slug = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    path = Path(__file__).parent / "results" / f"{today}-{slug}{'-quick' if quick else ''}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print("\n" + table(record["rows"]) + f"\n\nrecorded in {path}")


if __name__ == "__main__":
    sys.exit(main())
