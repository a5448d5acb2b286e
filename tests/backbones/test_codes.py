"""Vectors of codes as a generator learns from them: one table a stream, from the quantizer that a store keeps."""

import pytest
import torch

import quantizers
from backbones import Autoregressive, build, load, save
from backbones.codes import CodeEmbedding, code_tables, standardized
from tokenizers_mm.api import Batch, Tokens, TokenSpec

VQ = {"kind": "vq", "size": 6, "dim": 3}
KINDS = {
    "vq": VQ,
    "residual": {"kind": "residual", "inner": VQ, "depth": 3},
    "product": {"kind": "product", "inner": VQ, "groups": 2},
    "lfq": {"kind": "lfq", "dim": 6, "streams": 2},
    "multiscale": {"kind": "multiscale", "inner": {"kind": "residual", "inner": VQ, "depth": 2}, "scales": [1, 2]},
}
OPTIONS = {"width": 16, "depth": 1, "heads": 2}


def quantizer_of(name, seed=0):
    torch.manual_seed(seed)
    return quantizers.build(KINDS[name]).eval()


def spec_of(quantizer):
    return TokenSpec(image_size=(8, 8), grid=(2, 2), dim=quantizer.dim, codes=quantizer.codes)


def tokens_of(spec, batch=3):
    streams = [torch.randint(size, (batch, spec.length)) for size in spec.codes]
    return Tokens(codes_BNS=torch.stack(streams, -1), grid=spec.grid)


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_all_streams_add_up_to_the_vector(name):
    quantizer = quantizer_of(name)
    codes_BNS, table_VD = tokens_of(spec_of(quantizer)).data, code_tables(quantizer)
    assert table_VD.shape == (sum(quantizer.codes), quantizer.dim)
    each = [table_VD[sum(quantizer.codes[:stream]) + codes_BNS[..., stream]] for stream in range(len(quantizer.codes))]
    torch.testing.assert_close(torch.stack(each).sum(0), quantizer.vectors(codes_BNS))
    assert not torch.allclose(torch.stack(each).sum(0), quantizer.vectors(codes_BNS.flip(0)), atol=1e-2)


def test_there_is_no_table_where_it_would_be_too_large_or_has_no_codes():
    assert code_tables(quantizers.build({"kind": "fsq", "levels": [256, 256]})).shape == (65_536, 2)
    assert code_tables(quantizers.build({"kind": "fsq", "levels": [256, 257]})) is None
    assert code_tables(quantizers.build({"kind": "gaussian", "dim": 3})) is None


def test_channels_of_every_stream_have_one_size():
    """Whatever the size of what a level adds; a group's table has zeros where the channels are another group's."""
    table_VD = torch.cat([torch.randn(6, 3), torch.randn(6, 3) * 1e-3 + 0.01])
    for part_VD in torch.split(standardized(table_VD, (6, 6)), 6):
        torch.testing.assert_close(part_VD.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(part_VD.std(0), torch.ones(3), atol=1e-3, rtol=0)
    product_VD = standardized(code_tables(quantizer_of("product")), (6, 6))
    assert product_VD[:6, 3:].count_nonzero() == product_VD[6:, :3].count_nonzero() == 0
    torch.testing.assert_close(product_VD[:6, :3].std(0), torch.ones(3))


@pytest.mark.parametrize("name", ["residual", "product", "multiscale"])
def test_codes_of_equal_vectors_are_embedded_alike_in_every_stream(name):
    quantizer = quantizer_of(name)
    spec, table_VD = spec_of(quantizer), code_tables(quantizer)
    last = sum(spec.codes[:-1])
    table_VD[last + 4] = table_VD[last + 1]
    with_vectors = CodeEmbedding(spec.codes, 16, table_VD)
    ids_alone = CodeEmbedding(spec.codes, 16)
    for embedding, alike in ((with_vectors, True), (ids_alone, False)):
        if alike:
            torch.nn.init.zeros_(embedding.table.weight)
        x = embedding(torch.arange(6), len(spec.codes) - 1)
        assert torch.equal(x[4], x[1]) is alike
        assert not torch.equal(x[4], x[2])


def test_a_generator_is_built_from_what_a_store_keeps(tmp_path):
    quantizer = quantizer_of("residual")
    spec = spec_of(quantizer)
    torch.manual_seed(1)
    generator = build("autoregressive", OPTIONS, spec, quantizer=quantizer)
    torch.manual_seed(1)
    same = Autoregressive(generator.config, spec, code_tables(quantizer))
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), same.parameters(), strict=True))
    assert torch.equal(generator.codes.codebook, standardized(code_tables(quantizer), spec.codes))
    given = torch.randn(18, 5)  # a table that is given comes first
    assert build("autoregressive", OPTIONS, spec, given, quantizer).codes.codebook.shape == (18, 5)
    assert build("autoregressive", OPTIONS, spec).codes.codebook is None
    with pytest.raises(ValueError, match=r"codes=\(6, 6\).*\(6, 6, 6\)"):
        build("autoregressive", OPTIONS, spec, quantizer=quantizer_of("product"))

    batch = Batch(tokens_of(spec), ["a", "b", ""])
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save(generator, tmp_path)
    again = load(tmp_path)  # the quantizer is not needed any more
    assert torch.equal(again.codes.codebook, generator.codes.codebook)
    assert torch.equal(again.loss(batch)["image"], generator.eval().loss(batch)["image"])
    generator.codes.codebook.mul_(-1)
    assert not torch.equal(again.loss(batch)["image"], generator.loss(batch)["image"])
