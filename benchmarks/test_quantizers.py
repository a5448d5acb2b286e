"""Quantizers against vector-quantize-pytorch in eval mode: vectors and codes of the same input, same codebook."""

import pytest
import torch
import vector_quantize_pytorch as vqp
from torch.profiler import ProfilerActivity, profile

from quantizers import FSQ, VQ, nearest

VECTORS = 8192
THEIRS = "vector-quantize-pytorch"
SIZES = [(1024, 8), (1024, 32), (8192, 8), (8192, 32)]


def with_peak(function, *arguments):
    """Result of a call, and the most memory, in MiB, that it held beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function(*arguments)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return result, round(int(held.max()) / 2**20, 1)


def assert_as_near(a, b, z, codebook):
    """Equal codes, but for ties: there, both rows are equally far up to rounding."""
    other = (a != b).nonzero()[:, 0]
    far_a, far_b = ((z[other].double() - codebook[index[other]].double()).norm(dim=1) for index in (a, b))
    torch.testing.assert_close(far_a, far_b, rtol=1e-6, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize(("size", "dim"), SIZES)
def test_vq(compare, size, dim):
    ours, theirs = VQ(size, dim).eval(), vqp.VectorQuantize(dim=dim, codebook_size=size).eval()
    theirs._codebook.embed.copy_(ours.codebook_KD[None])
    z = torch.randn(1, VECTORS, dim)
    (a, a_peak), ((vectors, codes, _), b_peak) = with_peak(ours, z), with_peak(theirs, z)
    assert_as_near(a.codes_BNS[0, :, 0], codes[0], z[0], ours.codebook_KD)
    same = a.codes_BNS[..., 0] == codes
    torch.testing.assert_close(a.z_BND[same], vectors[same], atol=1e-5, rtol=0)
    compare(
        f"VQ, {VECTORS} vectors, K={size}, d={dim}",
        "quantizers.VQ",
        THEIRS,
        lambda: ours(z),
        lambda: theirs(z),
        rounds=3 if size > 1024 else 7,
        A_peak_mib=a_peak,
        B_peak_mib=b_peak,
    )


@torch.inference_mode()
@pytest.mark.parametrize(("size", "dim"), SIZES)
def test_nearest(compare, size, dim):
    z, codebook = torch.randn(VECTORS, dim), torch.randn(size, dim)

    def plain():
        return torch.cdist(z, codebook).argmin(-1)

    (a, a_peak), (b, b_peak) = with_peak(nearest, z, codebook), with_peak(plain)
    assert_as_near(a, b, z, codebook)
    compare(
        f"nearest code, {VECTORS} vectors, K={size}, d={dim}",
        "quantizers.nearest",
        "torch.cdist, argmin",
        lambda: nearest(z, codebook),
        plain,
        rounds=5,
        A_peak_mib=a_peak,
        B_peak_mib=b_peak,
    )


@torch.inference_mode()
def test_fsq(compare):
    ours, theirs = FSQ([8, 5, 5, 5]), vqp.FSQ(levels=[8, 5, 5, 5]).eval()
    z = torch.randn(64, 1024, 4)
    (a, a_peak), ((vectors, codes), b_peak) = with_peak(ours, z), with_peak(theirs, z)
    assert torch.equal(a.codes_BNS[..., 0], codes.long())
    torch.testing.assert_close(a.z_BND, vectors, atol=1e-6, rtol=0)
    compare(
        "FSQ 8 5 5 5, 65 536 vectors",
        "quantizers.FSQ",
        THEIRS,
        lambda: ours(z),
        lambda: theirs(z),
        rounds=51,
        A_peak_mib=a_peak,
        B_peak_mib=b_peak,
    )
