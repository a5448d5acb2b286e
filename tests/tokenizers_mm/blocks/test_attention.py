"""Every option of attention against loops over pairs of positions, in float64. Shape letters as in the module."""

import math

import pytest
import torch

from tokenizers_mm.blocks.attention import Attention, attend
from tokenizers_mm.blocks.cache import KeyValueCache
from tokenizers_mm.blocks.cross_attention import AttentionPool, CrossAttention
from tokenizers_mm.blocks.norms import normalised
from tokenizers_mm.blocks.rotary import rotate, rotation

WIDTH, HEADS, DIM = 24, 6, 4


def looped(q_LD, k_KD, v_KD, allowed_LK):
    """Attention of one head, by an explicit softmax over what each position may look at."""
    out_LD = torch.zeros(len(q_LD), v_KD.shape[1], dtype=torch.float64)
    for i, q_D in enumerate(q_LD):
        weights = [math.exp(q_D @ k_D / math.sqrt(len(q_D))) * bool(allowed_LK[i, j]) for j, k_D in enumerate(k_KD)]
        out_LD[i] = sum(weight * v_KD[j] for j, weight in enumerate(weights)) / sum(weights)
    return out_LD


def each_head(q_BHLD, k_BGKD, v_BGKD, allowed_BLK):
    (batch, heads), share = q_BHLD.shape[:2], q_BHLD.shape[1] // k_BGKD.shape[1]
    pairs = [(b, h) for b in range(batch) for h in range(heads)]
    out = [looped(q_BHLD[b, h], k_BGKD[b, h // share], v_BGKD[b, h // share], allowed_BLK[b]) for b, h in pairs]
    return torch.stack(out).view(q_BHLD.shape)


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_random_weights(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
    return module.requires_grad_(False)


def some_mask(batch, length, keys):
    """Half of the pairs, and for every position at least one."""
    mask_BLK = torch.rand(batch, length, keys, generator=torch.Generator().manual_seed(2)) < 0.5
    mask_BLK[..., 0] = True
    return mask_BLK


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("mask", ["none", "shared", "each"])
def test_attend_is_the_formula(explicit, kv_heads, mask):
    q, k, v = random(2, HEADS, 3, DIM), random(2, kv_heads, 5, DIM, seed=2), random(2, kv_heads, 5, DIM, seed=3)
    allowed = {
        "none": torch.ones(2, 3, 5).bool(),
        "shared": some_mask(1, 3, 5).repeat(2, 1, 1),
        "each": some_mask(2, 3, 5),
    }
    given = {"none": None, "shared": allowed["shared"][0], "each": allowed["each"]}
    wanted = each_head(q, k, v, allowed[mask])
    torch.testing.assert_close(attend(q, k, v, given[mask], explicit=explicit), wanted)
    other = ~allowed[mask]
    other[..., :2] = True
    assert not torch.allclose(attend(q, k, v, other, explicit=explicit), wanted)
    if kv_heads == 2:  # neighbouring heads share keys, not every other one
        every_other = attend(q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1), given[mask], explicit=explicit)
        assert not torch.allclose(every_other, wanted)


@pytest.mark.parametrize("qk_norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize(("qkv_bias", "out_bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("explicit", [True, False])
def test_self_attention_is_the_formula(qk_norm, kv_heads, qkv_bias, out_bias, explicit):
    biases = {"qkv_bias": qkv_bias, "out_bias": out_bias}
    options = biases | {"kv_heads": kv_heads, "qk_norm": qk_norm, "explicit_on_cpu": explicit}
    layer = with_random_weights(Attention(WIDTH, HEADS, **options))
    x, mask, turns = random(2, 5, WIDTH), some_mask(2, 5, 5), rotation(random(5, 1), DIM, 100.0)
    shared = (kv_heads or HEADS) * DIM
    projected = x @ layer.qkv.weight.T + (layer.qkv.bias if qkv_bias else 0)
    q, k, v = (part.view(2, 5, -1, DIM) for part in projected.split([WIDTH, shared, shared], -1))
    q, k = (rotate(normalised(part, qk_norm), turns) for part in (q, k))
    if qk_norm != "none":
        q = q * layer.sharpness.view(HEADS, 1)
    mixed = each_head(*(part.transpose(1, 2) for part in (q, k, v)), mask).transpose(1, 2).reshape(2, 5, WIDTH)
    wanted = mixed @ layer.out.weight.T + (layer.out.bias if out_bias else 0)
    torch.testing.assert_close(layer(x, turns, mask), wanted)
    assert not torch.allclose(layer(x, None, mask), wanted)
    assert not torch.allclose(layer(x, turns), wanted)


@pytest.mark.parametrize(("norm", "centred", "eps"), [("layer", True, 1e-5), ("rms", False, 0.0)])
def test_queries_and_keys_are_normalised_by_name(norm, centred, eps):
    """The eps of LayerNorm is 1e-5, that of RMSNorm as good as none."""
    x = random(3, 8) * 0.01
    wanted = x - x.mean(-1, keepdim=True) * centred
    wanted = wanted / (wanted.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(normalised(x, norm), wanted)
    assert normalised(x, "none") is x


def test_parameters_are_those_of_the_options():
    names = {
        name: tuple(p.shape)
        for name, p in Attention(24, 6, kv_heads=2, qkv_bias=False, out_bias=False).named_parameters()
    }
    assert names == {"qkv.weight": (40, 24), "out.weight": (24, 24)}
    layer = Attention(24, 6, qk_norm="rms")
    assert {name for name, _ in layer.named_parameters()} == {
        "sharpness", "qkv.weight", "qkv.bias", "out.weight", "out.bias",
    }  # fmt: skip
    assert layer.sharpness.tolist() == [[1.0]] * 6


@pytest.mark.parametrize("options", [{"width": 10, "heads": 4}, {"heads": 6, "kv_heads": 4}, {"heads": 0}])
def test_heads_that_do_not_divide_are_refused(options):
    named = "".join(f".*{name}={value}" for name, value in options.items())
    with pytest.raises(ValueError, match=named):
        Attention(**{"width": 24} | options)


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_cached_positions_equal_the_whole_sequence(kv_heads):
    layer, cache = with_random_weights(Attention(WIDTH, HEADS, kv_heads=kv_heads, qk_norm="rms")), KeyValueCache()
    x, position, mask = random(2, 6, WIDTH), torch.arange(6.0)[:, None], torch.ones(6, 6).tril().bool()
    parts = [
        layer(x[:, a:b], rotation(position[a:b], DIM, 100.0), mask[a:b, :b], cache[3])
        for a, b in ((0, 2), (2, 3), (3, 6))
    ]
    whole = layer(x, rotation(position, DIM, 100.0), mask)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    alone = layer(x[:, 3:], rotation(position[3:], DIM, 100.0), mask[3:, 3:], cache[0])  # another layer is empty
    assert not torch.allclose(alone, whole[:, 3:])


def test_the_written_out_products_are_those_of_the_kernel_in_half_precision_too():
    q, k, v = (random(2, HEADS, 5, DIM, seed=seed).bfloat16() for seed in (1, 2, 3))
    mask = some_mask(2, 5, 5)
    ours, theirs = (attend(q, k, v, mask, explicit=explicit) for explicit in (True, False))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(ours.double(), each_head(q.double(), k.double(), v.double(), mask), atol=2e-2, rtol=2e-2)


def test_under_autocast_attention_is_nearly_the_same():
    layer = with_random_weights(Attention(WIDTH, HEADS, qk_norm="layer")).float()
    x, turns = random(2, 5, WIDTH).float(), rotation(torch.arange(5.0)[:, None], DIM, 100.0)
    whole = layer(x, turns)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x, turns)
    assert half.dtype == torch.bfloat16
    assert float((half - whole).std() / whole.std()) < 0.02


def test_cross_attention_is_the_formula():
    layer = with_random_weights(CrossAttention(WIDTH, HEADS, source=7))
    x, source, mask = random(2, 3, WIDTH), random(2, 5, 7, seed=2), some_mask(2, 3, 5)
    q = x @ layer.query.weight.T + layer.query.bias
    k, v = (source @ layer.key_value.weight.T + layer.key_value.bias).split(WIDTH, -1)
    q, k, v = (part.view(2, -1, HEADS, DIM).transpose(1, 2) for part in (q, k, v))
    mixed = each_head(q, k, v, mask).transpose(1, 2).reshape(2, 3, WIDTH)
    wanted = mixed @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x, source, mask), wanted)
    assert not torch.allclose(layer(x, source), wanted)
    assert CrossAttention(8, 2).key_value.in_features == 8


def test_pooling_is_one_query_over_all_positions():
    pool, x = with_random_weights(AttentionPool(WIDTH, HEADS)), random(2, 5, WIDTH)
    mean, deviation = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True).add(1e-5).sqrt()
    h = (x - mean) / deviation * pool.norm.weight + pool.norm.bias
    k, v = (h @ pool.key_value.weight.T + pool.key_value.bias).split(WIDTH, -1)
    k, v = (part.view(2, 5, HEADS, DIM).transpose(1, 2) for part in (k, v))
    q = pool.query.view(1, HEADS, 1, DIM).expand(2, -1, -1, -1)
    mixed = each_head(q, k, v, torch.ones(2, 1, 5).bool()).reshape(2, WIDTH)
    torch.testing.assert_close(pool(x), mixed @ pool.out.weight.T + pool.out.bias)
    torch.testing.assert_close(pool(x), pool(x.flip(1)))  # a set: the order is nothing to it
