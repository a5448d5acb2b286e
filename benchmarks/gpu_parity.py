"""What the kernels must compute before `make gpu` times them: float64, the torch references, and torch.compile.

Every check is (name, what is wrong or None, note). Codes are exact but for provable ties: rows whose two best scores
lie within what float32 arithmetic may be off; how many there were is in the note.
"""

import torch

from quantizers import FSQ
from quantizers.kernels import nearest, residual_encode, scalar_quantize, sign_quantize, using

SEARCHES = [
    (1, 1, 1),
    (1000, 777, 5),
    (4097, 1000, 8),
    (513, 1025, 16),
    (4097, 1000, 33),
    (300, 2000, 64),
    (300, 2000, 100),
    (513, 1025, 256),
    (130, 517, 600),
    (100, 20_000, 256),
    (8192, 8192, 32),
]
RESIDUALS = [(1000, 4, 100, 5), (513, 8, 256, 32), (700, 3, 129, 64), (513, 8, 1024, 256), (130, 2, 100, 250)]
EPS = torch.finfo(torch.float32).eps


def checks(device):
    """All of them, one after the other."""
    for shape in SEARCHES:
        for metric in ("euclidean", "dot"):
            yield check_search(device, *shape, metric)
    yield check_ties(device)
    yield check_not_finite(device)
    for shape in RESIDUALS:
        yield check_residual(device, *shape)
    for levels in ([8, 5, 5, 5], [8, 8, 8, 5, 5, 5], [3, 2, 7], [2], [1000, 1000, 1000]):
        yield check_scalar(device, levels)
    for dim, streams, msb in (
        (18, 1, True),
        (18, 1, False),
        (62, 1, True),
        (36, 2, True),
        (32, 1, False),
        (1, 1, True),
    ):
        yield check_sign(device, dim, streams, msb)
    yield from check_compiled(device)
    if torch.device(device).type == "cuda":
        yield check_bf16(device)


def untied(index, z, codebook, dot=False):
    """(rows whose code float32 cannot excuse, rows whose code is not the float64 argmin)."""
    wrong = other = 0
    codebook = codebook.double()
    half = codebook.square().sum(1) / 2 * (not dot)
    for rows, chosen in zip(z.double().split(1024), index.split(1024), strict=True):
        score = half - rows @ codebook.T
        # Splitting into tf32 loses 3 * 2^-22 of a product; sums of D take at most D * 2^-24.
        error = (z.shape[1] / 2 + 8) * EPS * (rows.norm(dim=1, keepdim=True) * codebook.norm(dim=1) + half)
        best = score.argmin(1, keepdim=True)
        picked = chosen[:, None]
        gap = score.gather(1, picked) - score.gather(1, best)
        wrong += int((gap > error.gather(1, picked) + error.gather(1, best)).sum())
        other += int((picked != best).sum())
    return wrong, other


def check_search(device, count, size, dim, metric):
    z, codebook = torch.randn(count, dim, device=device) + 0.5, torch.randn(size, dim, device=device)
    wrong, other = untied(nearest(z, codebook, metric=metric), z, codebook, metric == "dot")
    name = f"nearest {metric}, N={count}, K={size}, d={dim}"
    return name, f"{wrong} wrong codes" if wrong else None, f"{other} of {count} are ties decided otherwise"


def check_ties(device):
    row = torch.randn(7, 24, device=device)
    found = nearest(row, row.repeat(600, 1)).tolist()
    return "ties go to the lowest index", None if found == list(range(7)) else f"codes {found}", ""


def check_not_finite(device):
    z, codebook = torch.randn(300, 24, device=device), torch.randn(500, 24, device=device)
    z[::3, 5] = float("nan")
    z[1::3, 7] = float("inf")
    index = nearest(z, codebook)
    good = 0 <= int(index.min()) and int(index.max()) < 500 and not untied(index[2::3], z[2::3], codebook)[0]
    return "NaN and Inf give codes in range, and spoil no other row", None if good else "they do not", ""


def check_residual(device, count, levels, size, dim):
    z = torch.randn(count, dim, device=device)
    codebooks = (
        torch.randn(levels, size, dim, device=device) * torch.logspace(0, -1, levels, device=device)[:, None, None]
    )
    codes, q = residual_encode(z, list(codebooks))
    rest, total, wrong, other = z.clone(), torch.zeros_like(z), 0, 0
    for level, codebook in enumerate(codebooks):
        both = untied(codes[:, level], rest, codebook)
        wrong, other = wrong + both[0], other + both[1]
        rest -= codebook[codes[:, level]]
        total += codebook[codes[:, level]]
    trouble = (
        f"{wrong} wrong codes" if wrong else None if torch.equal(q, total) else "the sums are not those of the codes"
    )
    return f"residual, {levels} x {size}, N={count}, d={dim}", trouble, f"{other} of {codes.numel()} are ties"


def check_scalar(device, levels):
    fsq = FSQ(levels).to(device)
    z = 2 * torch.randn(10_001, len(levels), device=device)
    z[0], z[1], z[2] = float("inf"), float("-inf"), float("nan")
    z[3] = fsq.threshold_DT[:, 0]
    return f"scalar {levels}", same(scalar_quantize, z, fsq.threshold_DT, fsq.level_D, fsq.center_D, fsq.unit_D), ""


def check_sign(device, dim, streams, msb):
    z = torch.randn(10_001, dim, device=device)
    z[0], z[1], z[2] = 0.0, -0.0, float("nan")
    return (
        f"signs, {dim} bits, streams={streams}, msb={msb}",
        same(sign_quantize, z, scale=0.3, streams=streams, msb=msb),
        "",
    )


def same(operation, *arguments, **options):
    """None where an operation equals its torch reference to the last bit."""
    found = operation(*arguments, **options)
    with using("torch"):
        expected = operation(*arguments, **options)
    differ = sum(int((a != b).sum()) for a, b in zip(found, expected, strict=True))
    return f"{differ} values differ from the torch reference" if differ else None


def check_compiled(device):
    """In one graph, with a pointwise operation on both sides."""
    fsq = FSQ([8, 5, 5, 5]).to(device)
    constants = fsq.threshold_DT, fsq.level_D, fsq.center_D, fsq.unit_D
    z, codebook = torch.randn(1000, 32, device=device), torch.randn(500, 32, device=device)
    for name, function in {
        "nearest": lambda z: nearest(z * 2, codebook) + 1,
        "residual": lambda z: residual_encode(z * 2, [codebook, codebook])[1] * 2,
        "scalar": lambda z: scalar_quantize(z[:, :4] * 2, *constants)[1] + 1,
        "signs": lambda z: sign_quantize(z[:, :18] * 2)[1] + 1,
    }.items():
        found, expected = torch.compile(function, fullgraph=True)(z), function(z)
        yield f"torch.compile(fullgraph=True) of {name}", None if torch.equal(found, expected) else "values differ", ""


def check_bf16(device):
    from quantizers.kernels.cuda.nearest import nearest_cuda

    z, codebook = torch.randn(4096, 64, device=device), torch.randn(4096, 64, device=device)
    low, low_codebook = z.bfloat16().float(), codebook.bfloat16().float()
    wrong, _ = untied(nearest_cuda(low, low_codebook, False, precision="bf16"), low, low_codebook)
    agree = (nearest_cuda(z, codebook, False, precision="bf16") == nearest(z, codebook)).double().mean()
    return "bf16, of vectors that bf16 holds", f"{wrong} wrong codes" if wrong else None, f"{agree:.2%} agree on others"
