"""One training step, forward and backward: a VQ codebook that follows by moving averages, and the entropy of LFQ."""

import math

import torch
import vector_quantize_pytorch as vqp

from quantizers import LFQ, VQ


def step(quantizer, z):
    """Forward and backward; returns vectors, codes and loss of either library."""
    leaf = z.clone().requires_grad_()
    out = quantizer(leaf)
    vectors, codes, loss = (out.z_BND, out.codes_BNS[..., 0], out.loss) if hasattr(out, "z_BND") else out[:3]
    (vectors.square().mean() + loss).backward()
    return vectors.detach(), codes, loss.detach()


def test_vq_step(compare, peak, ties, theirs):
    count = size = 8192
    dim = 32
    ours = VQ(size, dim, decay=0.8, commitment=1.0)
    peer = vqp.VectorQuantize(
        dim=dim,
        codebook_size=size,
        decay=0.8,
        commitment_weight=1.0,
        threshold_ema_dead_code=1e-3,
        rotation_trick=False,
    )
    rows = ours.codebook_KD.clone()
    ours.count_K.fill_(1), ours.sum_KD.copy_(rows)
    peer._codebook.embed.copy_(rows[None]), peer._codebook.embed_avg.copy_(rows[None])
    z = torch.randn(1, count, dim)
    (_, a, loss_a), (_, b, loss_b) = step(ours, z), step(peer, z)
    differ = ties(a[0], b[0], z[0], rows)
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.codebook_KD, peer._codebook.embed[0], rtol=1e-3, atol=1e-3)  # theirs smooths counts
    compare(
        f"VQ training step, N=K={count}, d={dim}",
        {"VQ": lambda: step(ours, z), theirs: lambda: step(peer, z)},
        rounds=5,
        aims={theirs: 20},
        codes_that_differ_all_ties=differ,
        ours_mib=peak(lambda: step(ours, z)),
        ours_mib_aim=64,
        theirs_mib=peak(lambda: step(peer, z)),
    )


def test_entropy_14_bits(compare, peak, theirs):
    ours = LFQ(14, entropy=0.1, commitment=0.25)
    peer = vqp.LFQ(dim=14, codebook_size=2**14, entropy_loss_weight=0.1, commitment_loss_weight=0.25)
    z = 0.02 * torch.randn(1, 4096, 14)
    (_, a, loss_a), (_, b, loss_b) = step(ours, z), step(peer.train(), z)
    assert torch.equal(a, b)
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-3, atol=1e-3)  # theirs clamps probabilities at 1e-5
    compare(
        "LFQ entropy, forward and backward, 14 bits, N=4096",
        {"LFQ": lambda: step(ours, z), theirs: lambda: step(peer, z)},
        rounds=3,
        aims={theirs: 150},
        ours_mib=peak(lambda: step(ours, z)),
        theirs_mib=peak(lambda: step(peer, z)),
        memory_ratio_aim=100,
    )


def test_entropy_18_bits(compare, peak):
    """More than the other library can hold: 2^18 probabilities of 8192 vectors are 8 GiB, several times over."""
    ours, z = LFQ(18, entropy=0.1), 0.02 * torch.randn(1, 8192, 18)
    # A codebook entropy lies between that of a sample and that of 2^18 equally likely codes.
    stats = ours(z).stats
    assert 0 < float(stats["sample_entropy"]) < float(stats["codebook_entropy"]) <= 18 * math.log(2) + 1e-4
    compare(
        "LFQ entropy, forward and backward, 18 bits, N=8192",
        {"LFQ": lambda: step(ours, z)},
        rounds=3,
        ours_mib=peak(lambda: step(ours, z)),
        ours_mib_aim=100,
    )
