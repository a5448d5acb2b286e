"""Shape letters as in the module."""

from dataclasses import replace

import pytest
import torch

from tokenizers_mm.nets.transformer import Attention, Size, Transformer, grid_positions, rotate, rotation

SIZE = Size(width=16, depth=2, heads=2)


def test_positions_are_rows_and_columns_counted_from_the_middle():
    assert grid_positions(2, 3).tolist() == [[-0.5, -1], [-0.5, 0], [-0.5, 1], [0.5, -1], [0.5, 0], [0.5, 1]]


def test_products_of_turned_vectors_depend_on_the_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64)

    def product(at, other):
        (cos, sin), (cos_k, sin_k) = (rotation(torch.tensor([p], dtype=torch.float32), 8) for p in (at, other))
        return float(
            (rotate(q[None], cos.double(), sin.double()) * rotate(k[None], cos_k.double(), sin_k.double())).sum()
        )

    here = product((0, 0), (1, 2))
    assert here == pytest.approx(product((5, -3), (6, -1)), abs=1e-5)
    others = [product((0, 0), at) for at in ((2, 1), (-1, 2), (1, -2), (1, 3))]
    assert min(abs(here - other) for other in others) > 1e-2  # rows, columns and signs are told apart
    assert product((0, 0), (0, 0)) == pytest.approx(float(q @ k))


def test_attention_is_the_formula():
    torch.manual_seed(0)
    layer, x_BLE, position_L2 = Attention(SIZE), torch.randn(2, 6, 16), grid_positions(2, 3)
    with torch.no_grad():
        layer.sharpness.copy_(torch.tensor([0.5, 3.0])[:, None, None])
    mask_LL = torch.ones(6, 6).tril().bool()
    weight, bias = layer.qkv.weight, layer.qkv.bias
    heads = []
    for head in range(2):
        q, k, v = (
            x_BLE @ weight[part * 16 + head * 8 : part * 16 + head * 8 + 8].T
            + bias[part * 16 + head * 8 : part * 16 + head * 8 + 8]
            for part in range(3)
        )
        q, k = (rotate(a / a.square().mean(-1, keepdim=True).sqrt(), *rotation(position_L2, 8)) for a in (q, k))
        scores = layer.sharpness[head] * (q @ k.mT) / 8**0.5
        heads.append(scores.masked_fill(~mask_LL, -torch.inf).softmax(-1) @ v)
    wanted = layer.out(torch.cat(heads, -1))
    torch.testing.assert_close(layer(x_BLE, rotation(position_L2, 8), mask_LL), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_sizes(mlp, norm):
    """Parameters of a block: 4 E^2 + heads, the feed-forward layers, and norms."""
    size = replace(SIZE, mlp=mlp, norm=norm)
    per_norm = 32 if norm == "layer" else 16
    inside, first = (48, 96) if mlp == "swiglu" else (64, 64)
    block = 3 * 16 * 16 + 48 + 16 * 16 + 16 + 2 + 16 * first + first + inside * 16 + 16 + 2 * per_norm
    assert sum(p.numel() for p in Transformer(size).parameters()) == 2 * block + per_norm
    out = Transformer(size)(torch.randn(3, 4, 16), grid_positions(2, 2))
    assert 0.5 < float(out.std()) < 2
    assert Size(width=768, heads=12).inside == 2048  # the usual 8/3


def test_depth_does_not_make_the_residual_stream_larger():
    torch.manual_seed(0)
    x_BLE, position_L2 = torch.randn(4, 16, 64), grid_positions(4, 4)
    grown = []
    for depth in (2, 24):
        trunk = Transformer(Size(width=64, depth=depth, heads=4))
        trunk.norm = torch.nn.Identity()
        grown.append(float(trunk(x_BLE, position_L2).detach().std()))
    assert grown[1] < 1.3 * grown[0]


def test_a_fresh_adaptive_transformer_is_the_plain_one_with_double_gates():
    """Modulation starts at zero, so the condition matters only once it has been trained."""
    torch.manual_seed(0)
    trunk, x_BLE, position_L2 = Transformer(SIZE, adaptive=True), torch.randn(2, 4, 16), grid_positions(2, 2)
    conditions = torch.randn(2, 2, 16)
    first, second = (trunk(x_BLE, position_L2, condition_BE=c) for c in conditions)
    assert torch.equal(first, second)
    with torch.no_grad():
        for block in trunk.blocks:
            block.modulation.weight.normal_(std=0.1)
    first, second = (trunk(x_BLE, position_L2, condition_BE=c) for c in conditions)
    assert float((first - second).abs().max()) > 1e-2


def test_impossible_sizes_are_refused():
    for options in ({"width": 24, "heads": 4}, {"depth": 0}, {"hidden": 0, "heads": 0}):
        with pytest.raises(ValueError, match="width a multiple of 4 \\* heads"):
            Size(**options)
