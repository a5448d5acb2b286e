"""Nearest code of 8192 vectors: our module and our kernel against vector-quantize-pytorch's module, faiss, and the time
that the same multiplications take in a large matrix product ("sgemm limit").
"""

import faiss
import pytest
import torch
import vector_quantize_pytorch as vqp

from quantizers import VQ, Residual, kernels

VECTORS = 8192
SQUARE = 2048  # side of the matrix product that shows what the machine can do
ROUNDS = {1024: 11, 8192: 5, 16384: 3, 65536: 3}
# How many times our time vector-quantize-pytorch was aimed to take: our native path, our torch path.
AIMS = {
    ("euclidean", 8): (100, 8), ("euclidean", 32): (40, 8), ("euclidean", 256): (8, 2.5),
    ("cosine", 8): (40, 4), ("cosine", 32): (19, 4), ("cosine", 256): (3.4, 1.5),
}  # fmt: skip


def in_torch(function):
    """Return the same function on the plain PyTorch path."""

    def run():
        with kernels.using("torch"):
            return function()

    return run


@torch.inference_mode()
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dim", [8, 32, 256])
@pytest.mark.parametrize("size", ROUNDS)
def test_vq(compare, peak, ties, theirs, size, dim, metric):
    dot = metric == "cosine"
    ours = VQ(size, dim, metric=metric).eval()
    peer = vqp.VectorQuantize(dim=dim, codebook_size=size, use_cosine_sim=dot).eval()
    ours.codebook_KD.copy_(ours.rows())
    peer._codebook.embed.copy_(ours.codebook_KD[None])
    z, rows = torch.randn(1, VECTORS, dim), ours.codebook_KD
    flat = torch.nn.functional.normalize(z[0], dim=-1) if dot else z[0]
    index = (faiss.IndexFlatIP if dot else faiss.IndexFlatL2)(dim)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index.add(rows.numpy())
    search, plain = lambda: kernels.nearest(flat, rows, metric="dot" if dot else "euclidean"), lambda: ours(z)
    out, (vectors, codes, _) = ours(z), peer(z)
    differ = ties(out.codes_BNS[0, :, 0], codes[0], flat, rows, dot=dot)
    ties(in_torch(plain)().codes_BNS[0, :, 0], codes[0], flat, rows, dot=dot)
    ties(search(), torch.from_numpy(index.search(flat.numpy(), 1)[1][:, 0]), flat, rows, dot=dot)
    same = out.codes_BNS[..., 0] == codes
    torch.testing.assert_close(out.z_BND[same], vectors[same], atol=1e-5, rtol=0)
    left, right = torch.randn(2, SQUARE, SQUARE)
    product, flops = torch.empty(SQUARE, SQUARE), 2 * VECTORS * size * dim
    native, path = AIMS[metric, dim]
    compare(
        f"VQ {metric}, K={size}, d={dim}",
        {
            "VQ": plain,
            theirs: lambda: peer(z),
            "VQ, torch path": in_torch(plain),
            "nearest": search,
            "faiss IndexFlat": lambda: index.search(flat.numpy(), 1),
            "sgemm": lambda: torch.mm(left, right, out=product),
        },
        rounds=ROUNDS[size],
        aims={theirs: native},
        limits={
            "torch path, share of vector-quantize-pytorch": (lambda ms: ms["VQ, torch path"] / ms[theirs], 1 / path),
            "nearest, share of faiss": (lambda ms: ms["nearest"] / ms["faiss IndexFlat"], 1.0),
            "nearest, times the sgemm limit": (
                lambda ms: ms["nearest"] / (ms["sgemm"] * flops / (2 * SQUARE**3)),
                1.15,
            ),
        },
        codes_that_differ_all_ties=differ,
        search_mib=peak(search),
        search_torch_mib=peak(in_torch(search)),
        theirs_mib=peak(lambda: peer(z)),
    )


@torch.inference_mode()
def test_residual(compare, peak, theirs):
    dim, size, depth = 256, 1024, 8
    ours = Residual(VQ(size, dim), depth).eval()
    peer = vqp.ResidualVQ(dim=dim, codebook_size=size, num_quantizers=depth).eval()
    for level, (a, b) in enumerate(zip(ours.levels, peer.layers, strict=True)):
        a.codebook_KD.mul_(0.9**level)
        b._codebook.embed.copy_(a.codebook_KD[None])
    z = torch.randn(1, VECTORS, dim)
    out, (vectors, codes, _) = ours(z), peer(z)
    same = (out.codes_BNS == codes).all(-1)
    assert float(same.float().mean()) > 0.999  # one near tie changes all later levels
    torch.testing.assert_close(out.z_BND[same], vectors[same], atol=1e-4, rtol=0)
    compare(
        f"Residual VQ {depth} x {size}, d={dim}",
        {"Residual": lambda: ours(z), theirs: lambda: peer(z)},
        rounds=5,
        aims={theirs: 8},
        vectors_that_differ=int((~same).sum()),
        ours_mib=peak(lambda: ours(z)),
        theirs_mib=peak(lambda: peer(z)),
    )
