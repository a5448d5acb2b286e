"""What a store knows of its codes when the tokenizer is gone: the quantizer, its vectors, the inputs of next scales."""

import json
from pathlib import Path

import pytest
import torch

import quantizers
from quantizers import MultiScale
from tokenizers_mm import AutoencoderConfig, Fused, Tiled, build_autoencoder
from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.data.images import Preprocess
from tokenizers_mm.data.sets.shapes import Shapes, write_folder
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.store.code_vectors import rebuilt_quantizer
from tokenizers_mm.store.dataset import Row, StoreWriter, TokenDataset, verify
from tokenizers_mm.store.encode import encode_folder
from tokenizers_mm.traits import quantizer_of

VQ = {"kind": "vq", "size": 8, "dim": 3}
BOTTLENECKS = {
    "vq": VQ,
    "residual": {"kind": "residual", "inner": VQ, "depth": 3},
    "residual, shared": {"kind": "residual", "inner": VQ, "depth": 2, "shared": True},
    "product": {"kind": "product", "inner": VQ, "groups": 2},
    "lfq": {"kind": "lfq", "dim": 8, "streams": 2},
    "projected": {"kind": "projected", "inner": {"kind": "residual", "inner": VQ, "depth": 2}, "in_dim": 5},
    "multiscale vq": {"kind": "multiscale", "inner": VQ, "scales": [1, 2, 4]},
    "multiscale bsq": {"kind": "multiscale", "inner": {"kind": "bsq", "dim": 6}, "scales": [1, 3, 4], "phi": 0},
}
SAVED = Path(__file__).parents[2] / "saved" / "stores"


def tokenizer_of(options, seed=0):
    torch.manual_seed(seed)
    net = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
    return build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=options, net=net)).eval()


def random_codes(spec, batch=3):
    streams = [torch.randint(size, (batch, spec.length)) for size in spec.codes]
    return Tokens(codes_BNS=torch.stack(streams, -1), grid=spec.grid)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(Shapes(6, 0), tmp_path_factory.mktemp("images") / "shapes")


@pytest.fixture
def stored(images, tmp_path):
    def encode(tokenizer, name="store"):
        encode_folder(tokenizer, images, tmp_path / name, size=16)
        return TokenDataset(tmp_path / name)

    return encode


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_vectors_of_every_stream_outlive_the_tokenizer(name, stored):
    tokenizer = tokenizer_of(BOTTLENECKS[name])
    data = stored(tokenizer)
    drawn = random_codes(data.spec)
    expected = {tokens: tokenizer.embed(tokens) for tokens in (drawn, data.batch(range(6)).tokens)}
    other = stored(tokenizer_of(BOTTLENECKS[name], seed=1), "other").quantizer
    del tokenizer
    quantizer = data.quantizer
    assert quantizer is data.quantizer  # read once
    assert not quantizer.training
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())
    for tokens, z_BND in expected.items():
        each_BNSD = quantizer.stream_vectors(tokens.data)
        assert each_BNSD.shape == (*tokens.data.shape, data.spec.dim)
        torch.testing.assert_close(each_BNSD.sum(2), z_BND, atol=1e-5, rtol=1e-5)
        assert torch.equal(quantizer.vectors(tokens.data), z_BND)
        if "lfq" not in name and "bsq" not in name:  # bits stand for the same vectors in every tokenizer
            assert not torch.allclose(other.vectors(tokens.data), z_BND, atol=1e-2)


@pytest.mark.parametrize("name", [name for name, options in BOTTLENECKS.items() if options["kind"] == "multiscale"])
def test_inputs_of_the_next_scale_outlive_the_tokenizer(name, stored):
    tokenizer = tokenizer_of(BOTTLENECKS[name])
    data = stored(tokenizer)
    codes = random_codes(data.spec).data
    expected, decoded = tokenizer.bottleneck.next_scale_inputs(codes), tokenizer.bottleneck.decode(codes)
    del tokenizer
    quantizer = data.quantizer
    assert isinstance(quantizer, MultiScale)
    assert expected.shape == (3, data.spec.length - 1, data.spec.dim)
    assert torch.equal(quantizer.next_scale_inputs(codes), expected)
    assert torch.equal(quantizer.decode(codes), decoded)
    assert not torch.allclose(quantizer.next_scale_inputs(codes.flip(0)), expected)
    if name == "multiscale bsq":  # re-quantised targets of bitwise self-correction
        flip = quantizer.bit_flips(3, 0.5, torch.Generator().manual_seed(0))
        targets, shown = quantizer.self_corrected(decoded, flip)
        assert targets.shape == shown.shape == codes.shape
        assert not torch.equal(targets, shown)


def test_halves_side_by_side_have_one_quantizer_where_they_can(stored):
    residual, product = (BOTTLENECKS[name] for name in ("residual", "product"))
    first, second = tokenizer_of(residual), tokenizer_of(product, 1)
    fused = Fused(first, second, "channel")
    data = stored(fused)
    tokens = random_codes(data.spec)
    assert data.spec.streams == 5
    assert torch.equal(data.quantizer.vectors(tokens.data), fused.embed(tokens))
    torch.testing.assert_close(data.quantizer.stream_vectors(tokens.data).sum(2), fused.embed(tokens))
    assert Fused(first, first, "channel").quantizer is None
    assert Fused(first, tokenizer_of(residual, 1), "sequence").quantizer is None
    scales = [tokenizer_of(BOTTLENECKS["multiscale vq"], seed) for seed in (0, 1)]
    assert Fused(*scales, "channel").quantizer is None
    latents = [tokenizer_of({"kind": "gaussian", "dim": 3}, seed) for seed in (0, 1)]
    assert quantizer_of(Fused(*latents, "channel")) is quantizer_of(latents[0]) is None
    assert Tiled(first, 8).quantizer is first.bottleneck


class Own:
    """Somebody else's tokenizer, with a quantizer of ours or of its own inside."""

    spec = TokenSpec(image_size=(16, 16), grid=(4, 4), dim=3, codes=(8,))

    def __init__(self, quantizer, factor=1.0):
        self.quantizer, self.factor = quantizer, factor

    def encode(self, image_BCHW):
        return Tokens(codes_BNS=torch.zeros(len(image_BCHW), 16, 1, dtype=torch.int64), grid=(4, 4))

    def embed(self, tokens):
        return self.factor * torch.arange(24.0).reshape(8, 3)[tokens.data[..., 0]]

    def decode(self, tokens):
        return torch.zeros(len(tokens), 3, 16, 16)


def test_a_quantizer_is_kept_only_where_its_vectors_are_those_of_embed(stored):
    def vq(**options):
        quantizer = quantizers.build(VQ | options)
        with torch.no_grad():
            quantizer.codebook_KD.copy_(torch.arange(8.0 * quantizer.dim).reshape(8, -1))
        return quantizer

    data = stored(Own(vq()))
    assert data.quantizer.kind == "vq"
    for number, tokenizer in enumerate(
        [Own(vq(), factor=2.0), Own(vq(dim=4)), Own(torch.nn.Linear(3, 8)), Own(None), Own("vq")]
    ):
        assert rebuilt_quantizer(tokenizer) is None
        assert stored(tokenizer, f"other{number}").quantizer is None


def test_stores_of_before_and_of_latents_have_none(stored):
    for name in ("conv_fsq", "conv_product_text", "conv_multiscale", "fused_sequence_codes"):
        assert TokenDataset(SAVED / name).quantizer is verify(SAVED / name).quantizer is None
    data = stored(tokenizer_of({"kind": "gaussian", "dim": 3}))
    assert data.quantizer is None
    assert "quantizer" not in json.loads((data.path / "manifest.json").read_text())["record"]


def test_damage_is_found(stored):
    data = stored(tokenizer_of(BOTTLENECKS["residual"]))
    path = data.path / "quantizer.safetensors"
    report = verify(data.path)
    assert (report.ok, report.quantizer) == (True, "residual")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert [str(path) in problem for problem in verify(data.path).problems] == [True]
    with pytest.raises(ValueError, match=r"quantizer\.safetensors: does not match the SHA-256"):
        data.quantizer  # noqa: B018
    path.unlink()
    assert [str(path) in problem for problem in verify(data.path).problems] == [True]
    with pytest.raises(ValueError, match=r"quantizer\.safetensors: is missing"):
        TokenDataset(data.path).quantizer  # noqa: B018
    path.write_bytes(whole)
    assert verify(data.path).ok


def test_a_writer_refuses_another_specs_and_goes_on_after_one_that_stopped_early(tmp_path):
    spec, quantizer = Own.spec, quantizers.build(VQ)
    given = {"fingerprint": "f", "preprocess": Preprocess(16, 4)}
    for other in ({"dim": 4}, {"size": 9}):
        with pytest.raises(ValueError, match=r"codes=\(\d,\) and dim=\d.*codes=\(8,\) and dim=3"):
            StoreWriter(tmp_path / "other", spec, quantizer=quantizers.build(VQ | other), **given)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "quantizer.safetensors").write_bytes(b"half")  # the manifest was never committed
    with StoreWriter(tmp_path / "store", spec, quantizer=quantizer, **given) as writer:
        writer.write_shard(0, random_codes(spec, 1), [Row("a")])
    with StoreWriter(tmp_path / "store", spec, **given) as writer:  # goes on, with what is there
        writer.write_shard(1, random_codes(spec, 1), [Row("b")])
    tokens = TokenDataset(tmp_path / "store").batch(range(2)).tokens.data
    assert torch.equal(TokenDataset(tmp_path / "store").quantizer.decode(tokens), quantizer.eval().decode(tokens))
