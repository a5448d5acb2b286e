"""What each stream contributes to a vector: what sums to it, in every kind and in kinds inside kinds."""

import pytest
import torch

from quantizers import BSQ, FSQ, LFQ, VQ, MultiScale, Product, Projected, Residual, build

NESTED = {
    "product of residuals": lambda: Product(Residual(VQ(8, 3), 2), 2),
    "product of different widths": lambda: Product([FSQ([4, 3]), VQ(9, 3), LFQ(4, streams=2)]),
    "shared product of residuals": lambda: Product(Residual(VQ(8, 3), 2), 3, shared=True),
    "residual of products": lambda: Residual(Product(VQ(8, 2), 2), 3),
    "residual of bits, shrinking": lambda: Residual(LFQ(4, streams=2), 3, shrink=2.0),
    "shared residual": lambda: Residual(VQ(8, 4), 3, shared=True),
    "residual of projected": lambda: Residual(Projected(VQ(8, 2), 4), 3),
    "projected residual": lambda: Projected(Residual(VQ(8, 2), 3), 4),
    "projected bits without bias": lambda: Projected(BSQ(6, streams=3), 4, bias=False),
    "scales of residuals": lambda: MultiScale(Residual(VQ(8, 3), 2), [[1, 1], [2, 4]]),
}


def features(quantizer):
    return torch.randn(2, 8, quantizer.in_dim, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_that_they_sum_to_the_vectors(quantizer):
    codes = quantizer.encode(features(quantizer))
    each = quantizer.stream_vectors(codes)
    assert each.shape == (*codes.shape[:2], len(quantizer.codes), quantizer.dim)
    torch.testing.assert_close(each.sum(-2), quantizer.vectors(codes))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.stream_vectors(codes), each)
    with pytest.raises(ValueError, match="codes_BNS of stream 0 lie in"):
        quantizer.stream_vectors(codes + quantizer.codes[0])
    # A stream's part depends on its own code alone.
    for stream, size in enumerate(quantizer.codes):
        other = codes.clone()
        other[..., stream] = (other[..., stream] + 1) % size
        changed = (quantizer.stream_vectors(other) != each).any(-1).any(0).any(0)
        assert changed.nonzero().flatten().tolist() == [stream]


def test_streams_of_every_kind(example):
    torch.manual_seed(0)
    quantizer = build(example).eval()
    if quantizer.codes:
        check_that_they_sum_to_the_vectors(quantizer)
        return
    with pytest.raises(ValueError, match=f"{quantizer.kind} has no streams.*latents"):
        quantizer.stream_vectors(features(quantizer))


@pytest.mark.parametrize("name", NESTED)
def test_streams_of_kinds_inside_kinds(name):
    torch.manual_seed(0)
    check_that_they_sum_to_the_vectors(NESTED[name]().eval())


@torch.no_grad()
def test_running_sums_over_levels_are_the_vectors_of_prefixes():
    for name in ("residual of products", "residual of bits, shrinking", "shared residual", "residual of projected"):
        residual = NESTED[name]().eval()
        codes = residual.encode(features(residual))
        sums = residual.stream_vectors(codes).cumsum(-2)
        streams = len(residual.levels[0].codes)
        for count in range(streams, codes.shape[-1] + 1, streams):
            torch.testing.assert_close(sums[..., count - 1, :], residual.decode_prefix(codes[..., :count]))
    projected = NESTED["projected residual"]().eval()
    codes = projected.encode(features(projected))
    first = projected.project_out(projected.quantizer.decode_prefix(codes[..., :1]))
    torch.testing.assert_close(projected.stream_vectors(codes)[..., 0, :], first)  # the bias is the first level's


@torch.no_grad()
def test_groups_keep_to_their_own_channels():
    product = NESTED["product of different widths"]().eval()
    codes = product.encode(features(product))
    each = product.stream_vectors(codes)
    ends = [(0, 2), (2, 5), (5, 7), (7, 9)]  # channels of the four streams: FSQ, VQ, and two halves of LFQ
    for stream, (start, end) in enumerate(ends):
        assert torch.equal(each[..., stream, start:end], product.decode(codes)[..., start:end])
        assert not bool(torch.cat([each[..., stream, :start], each[..., stream, end:]], -1).any())
