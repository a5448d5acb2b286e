"""Quantizers without a table: FSQ and LFQ in eval mode against vector-quantize-pytorch, and against copying as many
bytes as they read and write.
"""

import pytest
import torch
import vector_quantize_pytorch as vqp

from quantizers import FSQ, LFQ
from quantizers.kernels import scalar_quantize, sign_quantize

SMALL, LARGE = 262_144, 4_194_304


def contest(compare, peak, theirs, name, ours, peer, kernel, z, *, aim, **notes):
    """Time both and a copy; with many vectors, which no cache holds, the copy is what counts."""
    out = ours(z)
    half = (z.nbytes + out.z_BND.nbytes + out.codes_BNS.nbytes) // 8  # floats, so that reads and writes add up to all
    source, target = torch.randn(2, half)
    large = z.shape[1] >= LARGE
    candidates = {
        "module": lambda: ours(z),
        theirs: lambda: peer(z),
        "kernel": lambda: kernel(z[0]),
        "copy": lambda: target.copy_(source),
    }
    compare(
        name,
        candidates,
        rounds=5 if large else 21,
        aims={} if large else {theirs: aim},
        limits={
            "module, copies of the same bytes": (lambda ms: ms["module"] / ms["copy"], 3.0),
            "kernel, copies of the same bytes": (lambda ms: ms["kernel"] / ms["copy"], 3.0),
        }
        if large
        else {"kernel, share of vector-quantize-pytorch": (lambda ms: ms["kernel"] / ms[theirs], round(1 / aim, 3))},
        ours_mib=peak(candidates["module"]),
        theirs_mib=peak(candidates[theirs]),
        **notes,
    )


@torch.inference_mode()
@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 5, 5, 5)], ids=str)
def test_fsq(compare, peak, theirs, levels, count):
    ours, peer = FSQ(levels).eval(), vqp.FSQ(levels=list(levels)).eval()
    z = torch.randn(1, count, len(levels))
    out, (vectors, codes) = ours(z), peer(z)
    other = (out.codes_BNS[..., 0] != codes)[0]
    # A code may differ where a float32 tanh lies within its rounding error of a boundary, and nowhere else.
    bounded = torch.tanh(z[0, other].double() + ours.shift_D.double()) * ours.half_D.double() - ours.offset_D.double()
    margin = (bounded - bounded.floor() - 0.5).abs().min(-1).values if len(bounded) else torch.zeros(0)
    assert bool((margin < 1e-5).all())
    torch.testing.assert_close(out.z_BND[0, ~other], vectors[0, ~other], atol=1e-6, rtol=0)
    name = f"FSQ {' '.join(map(str, levels))}, {count} vectors"

    def kernel(z_ND):
        return scalar_quantize(z_ND, ours.threshold_DT, ours.level_D, ours.center_D, ours.unit_D)

    contest(compare, peak, theirs, name, ours, peer, kernel, z, aim=15, codes_that_differ_all_ties=int(other.sum()))


@torch.inference_mode()
@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_lfq(compare, peak, theirs, count):
    ours, peer = LFQ(18).eval(), vqp.LFQ(dim=18, codebook_size=2**18).eval()
    z = torch.randn(1, count, 18)
    out, (vectors, codes, _) = ours(z), peer(z)
    assert torch.equal(out.codes_BNS[..., 0], codes)
    assert torch.equal(out.z_BND, vectors)
    del vectors, codes
    contest(compare, peak, theirs, f"LFQ 18 bits, {count} vectors", ours, peer, sign_quantize, z, aim=14)
