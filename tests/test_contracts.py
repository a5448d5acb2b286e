"""One suite over every entry of every KINDS table: a new component is tested by being listed, with an example here.

A foreign tokenizer, a plain class without any of our bases, has to pass what ours pass.
"""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load, load_file, save
from torch.nn.functional import interpolate

import backbones
import quantizers
from tokenizers_mm import (
    AutoencoderConfig,
    Batch,
    Fused,
    Generator,
    Tokenizer,
    Tokens,
    TokenSpec,
    Tower,
    TowerConfig,
    build_autoencoder,
    build_tower,
    semantics_of,
)
from tokenizers_mm.data.images import Preprocess
from tokenizers_mm.models.semantic_head import SemanticConfig
from tokenizers_mm.nets import QueryConfig, ViTConfig
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.nets.transformer import TransformerConfig
from tokenizers_mm.store.dataset import Row, StoreWriter, TokenDataset
from tokenizers_mm.towers import EncodeOnly, NGramTextConfig

# Small constructor options of every kind.
QUANTIZERS = {
    "fsq": [{"levels": [8, 5, 5, 5]}, {"levels": [8, 5, 2], "form": "symmetric", "noise_dropout": 0.5}],
    "latent": [{"levels": [5, 5, 8]}],
    "vq": [
        {"size": 24, "dim": 4},
        {"size": 32, "dim": 3, "decay": 0.8, "commitment": 1.0, "revive": 0.0},
        {"size": 24, "dim": 4, "metric": "cosine", "kmeans": 2},
        {"size": 24, "dim": 4, "metric": "angle"},
        {"size": 24, "dim": 4, "codebook": "gradient", "estimator": "rotation"},
        {"size": 24, "dim": 4, "codebook": "gradient", "estimator": "diveq", "orthogonal": 1.0, "temperature": 0.5},
    ],
    "gaussian": [{"dim": 4}],
    "identity": [{"dim": 4}],
    "simvq": [{"size": 24, "dim": 4}],
    "ibq": [{"size": 32, "dim": 4}],
    "gumbel": [
        {"size": 32, "dim": 4},
        {"size": 24, "dim": 5, "in_dim": 4, "temperature": 0.7, "straight_through": False},
    ],
    "lfq": [{"dim": 6}],
    "bsq": [{"dim": 10}],
    "residual": [
        {"inner": {"kind": "vq", "size": 24, "dim": 4}, "depth": 3},
        {"inner": {"kind": "vq", "size": 16, "dim": 3}, "depth": 2, "shared": True, "dropout": 0.5},
        {"inner": {"kind": "fsq", "levels": [5, 5, 3]}, "depth": 2, "shrink": [4, 4, 2], "soft_clamp": 1.25},
    ],
    "product": [
        {"inner": {"kind": "vq", "size": 12, "dim": 2}, "groups": 2, "shared": True},
        {"inner": [{"kind": "fsq", "levels": [4, 3]}, {"kind": "vq", "size": 16, "dim": 3}], "groups": 2},
    ],
    "projected": [
        {"inner": {"kind": "vq", "size": 16, "dim": 4, "metric": "cosine"}, "in_dim": 5, "bias": False, "norm": True},
    ],
    "multiscale": [{"inner": {"kind": "vq", "size": 24, "dim": 4}, "scales": [1, 2, 4]}],
}
# More options of the same code, and the same around other quantizers: left out of tests that take seconds.
MORE_OPTIONS = {
    "fsq": [
        {"levels": [2, 3, 4]},
        {"levels": [16, 16, 4]},
        {"levels": [8, 5, 5], "form": "paper"},
        {"levels": [5, 4, 3], "activation": "sigmoid"},
    ],
    "latent": [{"levels": [6, 3, 2, 2], "commitment": 0.5, "codebook": 0.0}],
    "lfq": [{"dim": 8, "streams": 2, "bit_order": "lsb"}],
    "bsq": [{"dim": 12, "streams": 3, "entropy_group": 4}],
    "residual": [
        {"inner": {"kind": "lfq", "dim": 4, "streams": 2}, "depth": 3, "shrink": 2.0, "dropout": 0.5},
        {"inner": {"kind": "projected", "inner": {"kind": "fsq", "levels": [4, 4]}, "in_dim": 3}, "depth": 2},
    ],
    "product": [{"inner": {"kind": "vq", "size": 12, "dim": 2}, "groups": 2}],
    "projected": [{"inner": {"kind": "fsq", "levels": [5, 5, 3]}, "in_dim": 6}],
    "multiscale": [
        {
            "inner": {"kind": "vq", "size": 16, "dim": 3, "codebook": "gradient"},
            "scales": [[1, 1], [3, 2], [4, 4]],
            "phi": 0,
        },
        {"inner": {"kind": "bsq", "dim": 8}, "scales": [1, 2, 3, 4], "phi": 0, "commitment": 4.0},
    ],
}
GENERATORS = {
    "autoregressive": [{"width": 16, "depth": 1, "heads": 2}, {"width": 16, "depth": 1, "heads": 2, "classes": 5}],
    "flow": [{"width": 16, "depth": 1, "heads": 2}, {"width": 16, "depth": 1, "heads": 2, "classes": 5}],
}
FEWER, MORE = (
    [{"kind": kind, **options} for kind, examples in table.items() for options in examples]
    for table in (QUANTIZERS, MORE_OPTIONS)
)
CASES = [*FEWER, *MORE]
NAMES = [f"{case['kind']}{i}" for i, case in enumerate(CASES)]
BUILT = [(case, name, quantizers.build(case, "")) for case, name in zip(CASES, NAMES, strict=True)]


def every(wanted, cases=CASES):
    """Parametrize over the examples whose quantizer is `wanted`."""
    chosen = [(case, name) for case, name, quantizer in BUILT if wanted(quantizer) and case in cases]
    return pytest.mark.parametrize("options", [case for case, _ in chosen], ids=[name for _, name in chosen])


every_quantizer = every(lambda quantizer: True)
fewer_quantizers = every(lambda quantizer: True, FEWER)
every_discrete_quantizer = every(lambda quantizer: quantizer.codes)
every_invertible_quantizer = every(lambda quantizer: quantizer.codes and quantizer.invertible)
every_one_way_quantizer = every(lambda quantizer: not quantizer.invertible)
every_pointwise_quantizer = every(lambda quantizer: quantizer.pointwise)
every_whole_grid_quantizer = every(lambda quantizer: not quantizer.pointwise)


def test_every_kind_has_an_example():
    assert set(QUANTIZERS) == set(quantizers.KINDS)
    assert set(GENERATORS) == set(backbones.KINDS)


# ---------------------------------------------------------------------------------------------------- quantizers


def trained(options):
    """A quantizer after a few training batches, in eval mode."""
    quantizer = quantizers.build(options, "bottleneck")
    for _ in range(3):
        quantizer(vectors_for(quantizer, 4, 64))
    return quantizer.eval()


def vectors_for(quantizer, batch, positions):
    """Random vectors [batch, positions, in_dim]; a kind that takes whole grids gets its own number of positions."""
    return torch.randn(batch, positions_for(quantizer, positions), quantizer.in_dim)


def positions_for(quantizer, positions):
    return positions if quantizer.pointwise else math.prod(quantizer.scales[-1])


def every_code(quantizer, at_most=4096):
    """All codes [1, N, S] of a small vocabulary, random ones of a large one."""
    if math.prod(quantizer.codes) <= at_most:
        return torch.cartesian_prod(*map(torch.arange, quantizer.codes)).view(1, -1, len(quantizer.codes))
    return torch.stack([torch.randint(size, (1, at_most)) for size in quantizer.codes], -1)


@every_invertible_quantizer
def test_codes_and_vectors_are_exact_inverses(options):
    quantizer = trained(options)
    codes = every_code(quantizer)
    vectors = quantizer.decode(codes)
    assert vectors.shape == (*codes.shape[:2], quantizer.dim)
    assert torch.equal(quantizer.codes_of(vectors), codes)
    assert len(vectors[0].unique(dim=0)) == len(codes[0].unique(dim=0))


@every_one_way_quantizer
def test_where_vectors_do_not_give_codes_it_says_so(options):
    quantizer = trained(options)
    codes = quantizer.encode(vectors_for(quantizer, 2, 5))
    vectors = quantizer.decode(codes)
    assert vectors.shape == (2, positions_for(quantizer, 5), quantizer.dim)
    with pytest.raises(ValueError, match=f"{quantizer.kind} cannot read codes off vectors"):
        quantizer.codes_of(vectors)


@every_whole_grid_quantizer
def test_whole_grids_are_taken_and_nothing_else(options):
    quantizer = trained(options)
    whole = positions_for(quantizer, 0)
    mask = torch.ones(2, whole, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"mask_BN: {quantizer.kind}"):
        quantizer(torch.randn(2, whole, quantizer.in_dim), mask)
    for positions in (0, whole - 1, whole + 1):
        z = torch.randn(2, positions, quantizer.in_dim)
        for verb in (quantizer, quantizer.encode):
            with pytest.raises(ValueError, match=f"{positions} positions: {quantizer.kind} expects {whole}"):
                verb(z)
    codes = quantizer.encode(torch.randn(2, whole, quantizer.in_dim))
    with pytest.raises(ValueError, match=f"{codes.shape[1] - 1} positions: {quantizer.kind}"):
        quantizer.decode(codes[:, 1:])


@every_discrete_quantizer
def test_codes_lie_in_the_vocabulary_and_forward_agrees_with_encode(options):
    quantizer = trained(options)
    for scale in (1e-3, 1.0, 1e4):
        z = vectors_for(quantizer, 3, 50) * scale
        codes, out = quantizer.encode(z), quantizer(z)
        assert codes.dtype == torch.int64
        assert codes.shape == (3, quantizer.length(z.shape[1]), len(quantizer.codes))
        assert quantizer.length(z.shape[1]) == z.shape[1] or not quantizer.pointwise
        assert bool(((codes >= 0) & (codes < torch.tensor(quantizer.codes))).all())
        assert torch.equal(out.codes_BNS, codes)
        # z + (q - z) rounds at the magnitude of z
        torch.testing.assert_close(out.z_BND, quantizer.decode(codes), atol=1e-6 * max(1, scale), rtol=0)


@every_quantizer
def test_gradient_goes_straight_through(options):
    quantizer = trained(options)
    z = vectors_for(quantizer, 2, 5).requires_grad_()
    out = quantizer.train()(z)
    (gradient,) = torch.autograd.grad(out.z_BND.sum(), z, retain_graph=True)
    assert bool((gradient != 0).all())
    assert (out.loss.shape, out.loss.dtype) == ((), torch.float32)
    assert all(value.shape == () and not value.requires_grad for value in out.stats.values())
    assert out.z_BND.shape == (*z.shape[:2], quantizer.dim)


@every_quantizer
def test_options_rebuild_and_state_round_trips(options):
    quantizer = trained(options)
    again = quantizers.build(json.loads(json.dumps(quantizer.options())), "bottleneck").eval()
    assert again.options() == quantizer.options()
    assert (again.in_dim, again.dim, again.codes) == (quantizer.in_dim, quantizer.dim, quantizer.codes)
    again.load_state_dict(load(save(quantizer.state_dict())))
    z = vectors_for(quantizer, 2, 9)
    assert torch.equal(again.encode(z), quantizer.encode(z))
    assert torch.equal(again(z).z_BND, quantizer(z).z_BND)


@every_quantizer
def test_autocast_and_low_precision_inputs_change_nothing(options):
    quantizer = trained(options)
    z = vectors_for(quantizer, 2, 64).bfloat16()
    exact = quantizer.encode(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z), exact)
        out = quantizer(z)
        assert torch.equal(out.z_BND, quantizer(z.float()).z_BND)
        assert out.z_BND.dtype == out.loss.dtype == quantizer.decode(exact).dtype == torch.float32


@every_quantizer
def test_empty_batches_are_legal(options):
    quantizer = trained(options)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    # Whole grids: no images; an image without positions is refused above.
    shapes = [(0, 6), (3, 0)] if quantizer.pointwise else [(0, positions_for(quantizer, 0))]
    for shape, training in itertools.product(shapes, (False, True)):
        quantizer.train(training)
        z = torch.zeros(*shape, quantizer.in_dim, requires_grad=True)
        out, payload = quantizer(z), quantizer.encode(z)
        assert out.z_BND.shape == quantizer.decode(payload).shape == (*shape, quantizer.dim)
        assert payload.shape == (shape[0], quantizer.length(shape[1]), len(quantizer.codes) or quantizer.dim)
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
    if quantizer.invertible:
        with pytest.raises(ValueError, match=rf"{quantizer.kind} expects \[batch, position, {quantizer.dim}\]"):
            quantizer.codes_of(torch.zeros(2, 3, quantizer.dim + 1))


@every_discrete_quantizer
def test_wrong_codes_are_refused_by_name(options):
    quantizer = trained(options)
    good = quantizer.encode(vectors_for(quantizer, 2, 3))
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


@every_quantizer
def test_values_that_are_not_finite_are_refused(options):
    quantizer = trained(options)
    for value in (torch.nan, torch.inf, -torch.inf):
        z = vectors_for(quantizer, 2, 5)
        z[1, 2, 0] = value
        for verb in (quantizer, quantizer.encode, quantizer.train()):
            with pytest.raises(ValueError, match=rf"z_BND has 1 NaN or Inf of {z.numel()} values: {quantizer.kind}"):
                verb(z)
    large = torch.full_like(z, 3e38)  # finite, though their sum is not
    assert quantizer.eval().encode(large).shape[0] == 2


@every_pointwise_quantizer
def test_masked_positions_may_hold_anything_and_give_nothing(options):
    quantizer, mask = trained(options), torch.rand(4, 16) < 0.7
    z = torch.randn(4, 16, quantizer.in_dim)
    garbage = torch.where(mask[..., None], z, torch.nan)
    out, clean = quantizer(garbage, mask), quantizer(z)
    assert bool((out.z_BND[~mask] == 0).all())
    assert torch.equal(out.z_BND[mask], clean.z_BND[mask])
    if quantizer.codes:
        assert bool((out.codes_BNS[~mask] == 0).all())
        assert torch.equal(out.codes_BNS[mask], clean.codes_BNS[mask])
    # The loss is that of the real positions alone, and so is what training leaves behind.
    torch.testing.assert_close(out.loss, quantizer(z[mask][None]).loss, rtol=1e-5, atol=1e-6)
    states = []
    for filler in (torch.nan, 77.0):
        again = quantizers.build(options, "bottleneck")
        again.load_state_dict(quantizer.state_dict())
        torch.manual_seed(0)
        leaf = torch.where(mask[..., None], z, filler).requires_grad_()
        out = again(leaf, mask)
        (out.z_BND.sum() + out.loss).backward()
        assert bool((leaf.grad[~mask] == 0).all())
        states.append(again.state_dict() | {name: p.grad for name, p in again.named_parameters()})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    nothing = quantizer.train()(z, torch.zeros_like(mask))
    assert bool((nothing.z_BND == 0).all())
    assert float(nothing.loss.detach()) == pytest.approx(0, abs=1e-6) or "orthogonal" in options
    assert all(bool(torch.isfinite(value).all()) for value in quantizer.state_dict().values())


@every_pointwise_quantizer
def test_masks_of_the_wrong_kind_are_refused(options):
    quantizer = trained(options)
    z = torch.randn(2, 5, quantizer.in_dim)
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5), torch.ones(2, 5, 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match=rf"mask_BN is {mask.dtype} of shape .*torch.bool of shape \(2, 5\)"):
            quantizer(z, mask)


def losses_and_gradients(forward, quantizer, z, *mask):
    """Everything that a training step gives and leaves behind, from the same random numbers."""
    torch.manual_seed(0)
    quantizer.zero_grad()
    leaf = z.clone().requires_grad_()
    out = forward(leaf, *mask)
    (out.z_BND.square().sum() + out.loss).backward()
    state = {name: value.detach().clone() for name, value in quantizer.state_dict().items()}
    gradients = {f"{name}.grad": p.grad for name, p in quantizer.named_parameters() if p.grad is not None}
    codes = {} if out.codes_BNS is None else {"codes": out.codes_BNS}
    return {"z": out.z_BND.detach(), "loss": out.loss.detach(), "z.grad": leaf.grad, **codes, **state, **gradients}


def assert_compiles(options, training, backend, masks):
    """One graph, and the same step."""
    torch.compiler.reset()
    eager, compiled = (quantizers.build(options, "bottleneck").train(training) for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    forward = torch.compile(compiled, fullgraph=True, backend=backend)
    z = vectors_for(eager, 2, 16)
    for mask in masks:
        expected = losses_and_gradients(eager, eager, z, *mask)
        found = losses_and_gradients(forward, compiled, z, *mask)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@every_quantizer
def test_a_training_step_compiles_without_a_graph_break(options):
    """First and later ones, with a mask and without; of fewer quantizers through AOTAutograd too, which takes long."""
    masks = [(), (), (torch.rand(2, 16) < 0.7,)] if quantizers.build(options, "").pointwise else [(), ()]
    assert_compiles(options, True, "aot_eager" if options in FEWER else "eager", masks)


@fewer_quantizers
def test_evaluation_compiles_without_a_graph_break(options):
    assert_compiles(options, False, "eager", [()])


class Verb(torch.nn.Module):
    def __init__(self, quantizer, name):
        super().__init__()
        self.quantizer, self.name = quantizer, name

    def forward(self, argument):
        return getattr(self.quantizer, self.name)(argument)


@fewer_quantizers
def test_encode_and_decode_can_be_exported(options):
    quantizer = trained(options)
    z = vectors_for(quantizer, 3, 16)
    for name, argument in (("encode", z), ("decode", quantizer.encode(z))):
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(Verb(quantizer, name), (argument,), dynamic_shapes=({0: batch},))
        exported = program.module()
        other = torch.cat([argument, argument.flip(0)])
        assert torch.equal(exported(argument), getattr(quantizer, name)(argument))
        assert torch.equal(exported(other), getattr(quantizer, name)(other))


def clustered(seed, images, positions):
    """Sixteen channels that hold one of 40 centres, lightly blurred; most positions of an image hold the same."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    own, common = (torch.randint(40, (images, n), generator=generator) for n in (positions, 1))
    index = torch.where(torch.rand(images, positions, generator=generator) < 0.8, common, own)
    return centre[index] + 0.1 * torch.randn(images, positions, 16, generator=generator)


def readout_error(into, quantizer, x):
    """Squared error, in units of the variance, of the best linear readout of what comes out; and codes in use."""
    with torch.no_grad():
        out = quantizer.eval()(into(x))
    design = torch.cat([out.z_BND.flatten(0, 1), torch.ones(x.shape[0] * x.shape[1], 1)], 1).double()
    target = x.flatten(0, 1).double()
    left = target - design @ torch.linalg.lstsq(design, target, driver="gelsd").solution
    codes = 0 if out.codes_BNS is None else len(out.codes_BNS.flatten(0, 1).unique(dim=0))
    return float(left.square().mean() / target.var(0).mean()), codes


@fewer_quantizers
def test_a_few_hundred_steps_beat_the_untrained_quantizer(options):
    """Between two linear maps: what is trained reads better than what is not, and keeps as many codes in use."""
    torch.manual_seed(0)
    quantizer = quantizers.build(options, "bottleneck")
    into, out_of = torch.nn.Linear(16, quantizer.in_dim), torch.nn.Linear(quantizer.dim, 16)
    positions = positions_for(quantizer, 16)
    held_out = clustered(10_000, 64, positions)
    before, codes_before = readout_error(into, quantizer, held_out)
    parameters = [*into.parameters(), *quantizer.parameters(), *out_of.parameters()]
    optimizer = torch.optim.Adam(parameters, 5e-3)
    quantizer.train()
    for step in range(300):
        x = clustered(step, 16, positions)
        result = quantizer(into(x))
        loss = (out_of(result.z_BND) - x).square().mean() + 0.1 * result.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after, codes_after = readout_error(into, quantizer, held_out)
    assert after < 0.9 * before
    assert codes_after >= 0.9 * codes_before


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


CONV = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
SMALL = TransformerConfig(width=16, depth=1, heads=2)
FSQ, VQ, GAUSSIAN = (
    {"kind": "fsq", "levels": [8, 5]},
    {"kind": "vq", "size": 24, "dim": 4},
    {"kind": "gaussian", "dim": 3},
)
HEAD = SemanticConfig(dim=8, depth=1, heads=2, text=NGramTextConfig(width=8, depth=1, heads=2, buckets=64))
# Everything that is no conv net around a quantizer alone.
OTHERS = {
    "foreign": lambda: CellMeans(),
    "head": lambda: autoencoder_of(FSQ, semantic=HEAD),
    "tower": lambda: tower_of(),
    "vit": lambda: autoencoder_of(GAUSSIAN, ViTConfig(patch=4, encoder=SMALL)),
    "query": lambda: autoencoder_of(VQ, QueryConfig(patch=4, tokens=5, encoder=SMALL)),
    "nested": lambda: autoencoder_of(GAUSSIAN, QueryConfig(patch=4, tokens=5, encoder=SMALL, nested=True)),
    "channel codes": lambda: Fused(autoencoder_of(VQ, semantic=HEAD), autoencoder_of(FSQ)),
    "channel latents": lambda: Fused(tower_of(), autoencoder_of(GAUSSIAN)),
    "sequence codes": lambda: Fused(autoencoder_of(VQ), autoencoder_of(FSQ), "sequence"),
    "sequence latents": lambda: Fused(tower_of(), autoencoder_of(GAUSSIAN), "sequence"),
}


@pytest.fixture(params=[*CASES, *OTHERS], ids=[*NAMES, *(name.replace(" ", "-") for name in OTHERS)], scope="module")
def tokenizer(request):
    torch.manual_seed(0)
    return OTHERS[request.param]() if isinstance(request.param, str) else autoencoder_of(request.param)


def autoencoder_of(options, net=CONV, **more):
    """A small autoencoder after two training batches, calibrated."""
    model = build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=options, net=net, **more))
    for _ in range(2):
        model(image_of(batch=8))
    other = image_of(32, 16, batch=4) if model.spec.layout == "raster" else image_of(batch=4)
    model.eval().calibrate([image_of(batch=8), other])
    return model


def tower_of():
    """A tower of four positions a side for images of 16 pixels, which its network sees four times as large."""
    tower = build_tower(TowerConfig(name="timm:test_vit", image_size=16, input_size=64), random_init=True)
    tower.calibrate([image_of(batch=8)])
    return tower


def only_encodes(tokenizer):
    return isinstance(tokenizer, Tower)


def takes_one_size(tokenizer):
    inside = [getattr(tokenizer, name, None) for name in ("semantic", "perceptual")]
    return tokenizer.spec.layout != "raster" or any(isinstance(part, Tower) for part in (tokenizer, *inside))


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
    if only_encodes(tokenizer):
        with pytest.raises(EncodeOnly, match="only encodes"):
            tokenizer.decode(tokens)
    else:
        assert torch.equal(tokenizer.decode(tokens), tokenizer.decode(tokens))


def test_tokenizers_say_what_they_know(tokenizer):
    image = image_of()
    semantics = semantics_of(tokenizer, image)
    assert len(semantics) == 3
    assert all(bool(torch.isfinite(value).all()) for value in (semantics.patch_BND, semantics.pooled_BD))
    alone = semantics_of(tokenizer, image[1:2])
    torch.testing.assert_close(alone.pooled_BD, semantics.pooled_BD[1:2], atol=1e-4, rtol=1e-4)
    assert alone.grid == semantics.grid
    if hasattr(tokenizer, "token_semantics"):
        read = tokenizer.token_semantics(tokenizer.encode(image))
        assert len(read) == 3
        if not isinstance(getattr(tokenizer, "semantic", None), Tower):  # a tower reads images, not its tokens
            assert torch.equal(read.pooled_BD, semantics.pooled_BD)


ONE_SIZE = r"takes \(16, 16\) only|was built for images of \(16, 16\)"


def test_any_multiple_of_the_downsampling_goes_there_and_back(tokenizer):
    for size in ((16, 16), (4, 4), (8, 20), (36, 12)):
        if takes_one_size(tokenizer) and size != tokenizer.spec.image_size:
            with pytest.raises(ValueError, match=ONE_SIZE):
                tokenizer.encode(image_of(*size))
            continue
        tokens = tokenizer.encode(image_of(*size)).check(tokenizer.spec)
        finest = tokens.grid[-1] if tokenizer.spec.layout in ("scales", "parts") else tokens.grid
        assert tokens.grid == tokenizer.spec.resized(size).grid
        assert finest == ((size[0] // 4, size[1] // 4) if len(finest) == 2 else (5,))
        if not only_encodes(tokenizer):
            assert tokenizer.decode(tokens).shape == (3, 3, *size)


def test_other_sizes_are_refused(tokenizer):
    refusal = ONE_SIZE if takes_one_size(tokenizer) else r"is not a multiple of the downsampling 4.*pad_to_multiple"
    for size in ((18, 16), (16, 17), (2, 16)):
        with pytest.raises(ValueError, match=refusal):
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


@pytest.mark.parametrize("options", [case for case in CASES if not quantizers.build(case, "").codes], ids=str)
def test_latents_have_zero_mean_and_unit_variance(options):
    model = autoencoder_of(options)
    latents = torch.cat([model.encode(i).data.flatten(0, 1) for i in (image_of(batch=8), image_of(32, 16, 4))])
    torch.testing.assert_close(latents.mean(0), torch.zeros(model.spec.dim), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(0), torch.ones(model.spec.dim), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------- generators

DISCRETE_SPECS = [
    TokenSpec(image_size=(16, 8), grid=(4, 2), dim=3, codes=(7,)),
    TokenSpec(image_size=(16, 16), grid=(5,), dim=3, codes=(4, 9), layout="sequence"),
    TokenSpec(image_size=(16, 16), grid=(3,), dim=2, codes=(16,), layout="nested"),
    TokenSpec(image_size=(16, 16), grid=((1, 1), (2, 2)), dim=2, codes=(5,), layout="scales"),
    TokenSpec(image_size=(16, 16), grid=((2, 2), (1, 3)), dim=2, codes=(5,), layout="parts"),
]
SPECS = [
    spec
    for discrete in DISCRETE_SPECS
    for spec in (
        discrete,
        TokenSpec(image_size=discrete.image_size, grid=discrete.grid, dim=discrete.dim, layout=discrete.layout),
    )
]
TAKES_CODES = {"autoregressive": True, "flow": False}


def tokens_of(spec, batch=3):
    if spec.discrete:
        codes = torch.stack([torch.randint(size, (batch, spec.length)) for size in spec.codes], -1)
        return Tokens(codes_BNS=codes, grid=spec.grid)
    return Tokens(latents_BND=torch.randn(batch, spec.length, spec.dim), grid=spec.grid)


@pytest.mark.parametrize("spec", SPECS, ids=[f"{s.layout}-{'codes' if s.discrete else 'latents'}" for s in SPECS])
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
