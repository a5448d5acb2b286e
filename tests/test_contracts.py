"""One suite over every entry of every KINDS table: a new component is tested by being listed, with an example here.

A foreign tokenizer, a plain class without any of our bases, has to pass what ours pass.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load, load_file, save
from torch.nn.functional import interpolate

import backbones
import quantizers
from tokenizers_mm import AutoencoderConfig, Batch, Generator, Tokenizer, Tokens, TokenSpec, build_autoencoder
from tokenizers_mm.config import build
from tokenizers_mm.data.images import Preprocess
from tokenizers_mm.data.store import Row, StoreWriter, TokenDataset
from tokenizers_mm.nets.conv import ConvConfig

# Small constructor options of every kind.
QUANTIZERS = {
    "fsq": [{"levels": [8, 5, 5, 5]}, {"levels": [2, 3, 4]}, {"levels": [16, 16, 4]}],
    "vq": [{"size": 24, "dim": 4}, {"size": 32, "dim": 3, "decay": 0.8, "commitment": 1.0, "revive": 0.0}],
    "gaussian": [{"dim": 4}],
}
GENERATORS = {
    "autoregressive": [{"width": 16, "depth": 1, "heads": 2}, {"width": 16, "depth": 1, "heads": 2, "classes": 5}],
    "flow": [{"width": 16, "depth": 1, "heads": 2}, {"width": 16, "depth": 1, "heads": 2, "classes": 5}],
}
CASES = [{"kind": kind, **options} for kind, examples in QUANTIZERS.items() for options in examples]
NAMES = [f"{case['kind']}{i}" for i, case in enumerate(CASES)]
DISCRETE = [(c, name) for c, name in zip(CASES, NAMES, strict=True) if build(quantizers.KINDS, c, "").codes]

every_quantizer = pytest.mark.parametrize("options", CASES, ids=NAMES)
every_discrete_quantizer = pytest.mark.parametrize("options", [c for c, _ in DISCRETE], ids=[n for _, n in DISCRETE])


def test_every_kind_has_an_example():
    assert set(QUANTIZERS) == set(quantizers.KINDS)
    assert set(GENERATORS) == set(backbones.KINDS)


# ---------------------------------------------------------------------------------------------------- quantizers


def trained(options):
    """A quantizer after a few training batches, in eval mode."""
    quantizer = build(quantizers.KINDS, options, "bottleneck")
    for _ in range(3):
        quantizer(torch.randn(4, 64, quantizer.in_dim))
    return quantizer.eval()


def every_code(quantizer, at_most=4096):
    """All codes [1, N, S] of a small vocabulary, random ones of a large one."""
    if math.prod(quantizer.codes) <= at_most:
        return torch.cartesian_prod(*map(torch.arange, quantizer.codes)).view(1, -1, len(quantizer.codes))
    return torch.stack([torch.randint(size, (1, at_most)) for size in quantizer.codes], -1)


@every_discrete_quantizer
def test_codes_and_vectors_are_exact_inverses(options):
    quantizer = trained(options)
    codes = every_code(quantizer)
    vectors = quantizer.decode(codes)
    assert vectors.shape == (*codes.shape[:2], quantizer.dim)
    assert torch.equal(quantizer.codes_of(vectors), codes)
    assert len(vectors[0].unique(dim=0)) == len(codes[0].unique(dim=0))


@every_discrete_quantizer
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_codes_lie_in_the_vocabulary_and_forward_agrees_with_encode(options, scale):
    quantizer = trained(options)
    z = torch.randn(3, 50, quantizer.in_dim) * scale
    codes, out = quantizer.encode(z), quantizer(z)
    assert codes.dtype == torch.int64
    assert codes.shape == (3, 50, len(quantizer.codes))
    assert bool(((codes >= 0) & (codes < torch.tensor(quantizer.codes))).all())
    assert torch.equal(out.codes_BNS, codes)
    # z + (q - z) rounds at the magnitude of z
    torch.testing.assert_close(out.z_BND, quantizer.decode(codes), atol=1e-6 * max(1, scale), rtol=0)


@every_quantizer
def test_gradient_goes_straight_through(options):
    quantizer = trained(options)
    z = torch.randn(2, 5, quantizer.in_dim, requires_grad=True)
    out = quantizer.train()(z)
    (gradient,) = torch.autograd.grad(out.z_BND.sum(), z, retain_graph=True)
    assert bool((gradient != 0).all())
    assert (out.loss.shape, out.loss.dtype) == ((), torch.float32)
    assert all(value.shape == () and not value.requires_grad for value in out.stats.values())
    assert out.z_BND.shape == (2, 5, quantizer.dim)


@every_quantizer
def test_options_rebuild_and_state_round_trips(options):
    quantizer = trained(options)
    again = build(quantizers.KINDS, json.loads(json.dumps(quantizer.options())), "bottleneck").eval()
    assert again.options() == quantizer.options()
    assert (again.in_dim, again.dim, again.codes) == (quantizer.in_dim, quantizer.dim, quantizer.codes)
    again.load_state_dict(load(save(quantizer.state_dict())))
    z = torch.randn(2, 9, quantizer.in_dim)
    assert torch.equal(again.encode(z), quantizer.encode(z))
    assert torch.equal(again(z).z_BND, quantizer(z).z_BND)


@every_quantizer
def test_autocast_and_low_precision_inputs_change_nothing(options):
    quantizer = trained(options)
    z = torch.randn(2, 64, quantizer.in_dim).bfloat16()
    exact = quantizer.encode(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z), exact)
        out = quantizer(z)
        assert torch.equal(out.z_BND, quantizer(z.float()).z_BND)
        assert out.z_BND.dtype == out.loss.dtype == quantizer.decode(exact).dtype == torch.float32


@every_quantizer
@pytest.mark.parametrize("shape", [(0, 6), (3, 0)])
@pytest.mark.parametrize("training", [False, True])
def test_empty_batches_are_legal(options, shape, training):
    quantizer = trained(options).train(training)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z = torch.zeros(*shape, quantizer.in_dim, requires_grad=True)
    out, payload = quantizer(z), quantizer.encode(z)
    assert out.z_BND.shape == quantizer.decode(payload).shape == (*shape, quantizer.dim)
    assert payload.shape == (*shape, len(quantizer.codes) or quantizer.dim)
    assert float(out.loss.detach()) == 0
    (out.loss + out.z_BND.sum()).backward()
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


@every_quantizer
def test_wrong_vectors_are_refused_by_name(options):
    quantizer = trained(options)
    wrong = torch.zeros(2, 3, quantizer.in_dim + 1)
    for verb in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match=rf"z_BND has shape \(2, 3, {quantizer.in_dim + 1}\).*{quantizer.kind}"):
            verb(wrong)
        with pytest.raises(ValueError, match="z_BND has shape"):
            verb(wrong[0])
        with pytest.raises(ValueError, match=r"z_BND is torch.int64.*float"):
            verb(torch.zeros(2, 3, quantizer.in_dim, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"{quantizer.kind} expects \[batch, position, {quantizer.dim}\]"):
        quantizer.codes_of(torch.zeros(2, 3, quantizer.dim + 1))


@every_discrete_quantizer
def test_wrong_codes_are_refused_by_name(options):
    quantizer = trained(options)
    good = quantizer.encode(torch.randn(2, 3, quantizer.in_dim))
    with pytest.raises(ValueError, match="codes_BNS has shape"):
        quantizer.decode(torch.cat([good, good], -1))
    with pytest.raises(ValueError, match=r"codes_BNS is torch.float32.*integers"):
        quantizer.decode(good.float())
    for stream, size in enumerate(quantizer.codes):
        for value in (-1, size):
            bad = good.clone()
            bad[0, 1, stream] = value
            with pytest.raises(ValueError, match=rf"stream {stream} lie in .*{value}.* has codes 0\.\.{size - 1}"):
                quantizer.decode(bad)


# ---------------------------------------------------------------------------------------------------- tokenizers


class CellMeans:
    """A foreign tokenizer: mean colour of 4 x 4 cells, each channel rounded to its own number of levels."""

    def __init__(self):
        self.levels = torch.tensor([8, 6, 5])
        self.spec = TokenSpec(image_size=(16, 16), grid=(4, 4), dim=3, codes=(8, 6, 5))

    def encode(self, image):
        grid = self.spec.resized(tuple(image.shape[2:])).grid
        mean = torch.nn.functional.avg_pool2d(image, 4).flatten(2).transpose(1, 2)
        codes = ((mean.clamp(-1, 1) + 1) / 2 * (self.levels - 1)).round().long()
        return Tokens(codes_BNS=codes, grid=grid)

    def embed(self, tokens):
        return tokens.check(self.spec).codes_BNS / (self.levels - 1) * 2 - 1

    def decode(self, tokens):
        return interpolate(self.embed(tokens).transpose(1, 2).unflatten(2, tokens.grid), scale_factor=4)


def image_of(height=16, width=16, batch=3):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + 3 * width)) * 2 - 1


@pytest.fixture(params=[*CASES, None], ids=[*NAMES, "foreign"])
def tokenizer(request):
    return CellMeans() if request.param is None else autoencoder_of(request.param)


def autoencoder_of(options):
    """A small autoencoder after two training batches, calibrated."""
    net = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
    model = build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=options, net=net))
    for _ in range(2):
        model(image_of(batch=8))
    model.eval().calibrate([image_of(batch=8), image_of(32, 16, batch=4)])
    return model


def test_tokenizer_keeps_the_protocol(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert TokenSpec.from_json(tokenizer.spec.to_json()) == tokenizer.spec
    image = image_of()
    tokens = tokenizer.encode(image).check(tokenizer.spec)
    assert tokens.grid == tokenizer.spec.grid
    assert torch.equal(tokens.data, tokenizer.encode(image.clone()).data)
    vectors = tokenizer.embed(tokens)
    assert vectors.shape == (3, tokenizer.spec.length, tokenizer.spec.dim)
    assert vectors.is_floating_point()
    assert torch.equal(tokenizer.decode(tokens), tokenizer.decode(tokens))


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (8, 20), (36, 12)])
def test_any_multiple_of_the_downsampling_goes_there_and_back(tokenizer, size):
    tokens = tokenizer.encode(image_of(*size)).check(tokenizer.spec)
    assert tokens.grid == tokenizer.spec.resized(size).grid == (size[0] // 4, size[1] // 4)
    assert tokenizer.decode(tokens).shape == (3, 3, *size)


@pytest.mark.parametrize("size", [(18, 16), (16, 17), (2, 16)])
def test_other_sizes_are_refused(tokenizer, size):
    with pytest.raises(ValueError, match=r"is not a multiple of the downsampling 4.*pad_to_multiple"):
        tokenizer.encode(image_of(*size))


def test_bits_per_image_is_what_the_disk_holds(tokenizer, tmp_path):
    spec, tokens = tokenizer.spec, tokenizer.encode(image_of(batch=5))
    with StoreWriter(tmp_path / "store", spec, "fingerprint", Preprocess(16, 4)) as writer:
        writer.write_shard(0, tokens, [Row(f"image {i}") for i in range(5)])
    (payload,) = load_file(tmp_path / "store" / "00000.safetensors").values()
    assert payload.nbytes == 5 * math.ceil(spec.stored_bits_per_image / 8)
    waste = spec.stored_bits_per_image - spec.bits_per_image
    assert 0 <= waste < spec.length * max(spec.streams, 1)
    assert (waste == 0) == all(math.log2(size).is_integer() for size in spec.codes)
    back = TokenDataset(tmp_path / "store").batch(range(5)).tokens
    expected = tokens.data if spec.discrete else tokens.data.bfloat16().float()
    assert torch.equal(back.data, expected)
    assert back.grid == tokens.grid


@pytest.mark.parametrize("options", [case for case in CASES if not build(quantizers.KINDS, case, "").codes], ids=str)
def test_latents_have_zero_mean_and_unit_variance(options):
    model = autoencoder_of(options)
    latents = torch.cat([model.encode(i).data.flatten(0, 1) for i in (image_of(batch=8), image_of(32, 16, 4))])
    torch.testing.assert_close(latents.mean(0), torch.zeros(model.spec.dim), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(0), torch.ones(model.spec.dim), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------- generators

DISCRETE_SPECS = [
    TokenSpec(image_size=(16, 8), grid=(4, 2), dim=3, codes=(7,)),
    TokenSpec(image_size=(16, 16), grid=(5,), dim=3, codes=(4, 9), order="sequence"),
    TokenSpec(image_size=(16, 16), grid=(3,), dim=2, codes=(16,), order="nested"),
    TokenSpec(image_size=(16, 16), grid=((1, 1), (2, 2)), dim=2, codes=(5,), order="scales"),
]
SPECS = [
    spec
    for discrete in DISCRETE_SPECS
    for spec in (
        discrete,
        TokenSpec(image_size=discrete.image_size, grid=discrete.grid, dim=discrete.dim, order=discrete.order),
    )
]
TAKES_CODES = {"autoregressive": True, "flow": False}


def tokens_of(spec, batch=3):
    if spec.discrete:
        codes = torch.stack([torch.randint(size, (batch, spec.length)) for size in spec.codes], -1)
        return Tokens(codes_BNS=codes, grid=spec.grid)
    return Tokens(latents_BND=torch.randn(batch, spec.length, spec.dim), grid=spec.grid)


@pytest.mark.parametrize("spec", SPECS, ids=[f"{s.order}-{'codes' if s.discrete else 'latents'}" for s in SPECS])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, options) for kind, examples in GENERATORS.items() for options in examples],
    ids=[f"{kind}{i}" for kind, examples in GENERATORS.items() for i in range(len(examples))],
)
def test_generators(kind, options, spec):
    if spec.discrete != TAKES_CODES[kind]:
        with pytest.raises(ValueError, match=r"spec is (continuous|discrete)"):
            backbones.build(kind, options, spec)
        return
    generator = backbones.build(kind, options, spec)
    assert isinstance(generator, Generator)
    assert generator.spec == spec
    captions, labels = ["a red square", "", "b"], torch.tensor([0, 4, 2])
    by_class = bool(options.get("classes"))
    batch = Batch(tokens_of(spec), *((), labels) if by_class else (captions, None))
    losses = generator.loss(batch)
    assert losses
    assert all(value.shape == () and bool(torch.isfinite(value)) for value in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in generator.parameters() if p.grad is not None]
    assert any(bool((gradient != 0).any()) for gradient in gradients)
    condition = labels if by_class else captions
    samples = [generator.eval().sample(condition, seed=seed, guidance=2.0).check(spec) for seed in (1, 1)]
    assert len(samples[0]) == 3
    assert samples[0].grid == spec.grid
    assert torch.equal(samples[0].data, samples[1].data)
