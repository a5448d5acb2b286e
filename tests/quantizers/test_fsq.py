import pytest
import torch
import vector_quantize_pytorch as vqp
from torch import nn

from quantizers import FSQ

COMBINATIONS = [
    ("tanh", "tanh"),
    ("tanh", "sigmoid"),
    ("tanh", "clamp"),
    ("paper", "tanh"),
    ("symmetric", "tanh"),
    ("symmetric", "sigmoid"),
    ("symmetric", "clamp"),
]
every_combination = pytest.mark.parametrize(("form", "activation"), COMBINATIONS)


def rounded(z, levels, form, activation):
    """Digit and value of every number in float64 by squashing and rounding, and how far it is from a boundary."""
    level = torch.tensor(levels, dtype=torch.float64)
    squash = {
        "tanh": torch.tanh,
        "sigmoid": lambda x: 2 * torch.sigmoid(1.6 * x) - 1,
        "clamp": lambda x: x.clamp(-1, 1),
    }
    unsquash = {"tanh": torch.atanh, "sigmoid": lambda x: torch.atanh(x) / 0.8, "clamp": lambda x: x}
    if form == "symmetric":
        exact = (level - 1) * (squash[activation](z.double()) + 1) / 2
        digit = (exact + 0.5).floor()
        value = 2 * digit / (level - 1) - 1
    else:
        half = (level - 1) * (1 + 1e-3 if form == "tanh" else 1 - 1e-3) / 2
        offset = torch.where(level % 2 == 0, 0.5, 0.0)
        shift = torch.tan(offset / half) if form == "paper" else unsquash[activation](offset / half)
        exact = squash[activation](z.double() + shift) * half - offset + level // 2
        digit = exact.round()
        value = (digit - level // 2) / (level // 2)
    return digit.long(), value, ((exact - 0.5) - (exact - 0.5).round()).abs() / level


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 999, 1000])
def test_every_level_is_reached_and_none_beyond(level):
    fsq = FSQ([level])
    z = torch.cat([torch.linspace(-8, 8, 400_001), torch.tensor([-1e30, 1e30])])[None, :, None]
    codes = fsq.encode(z)
    assert codes.unique().tolist() == list(range(level))
    assert codes[0, -2:, 0].tolist() == [0, level - 1]
    assert bool((codes[0, 1:-2] >= codes[0, :-3]).all())


@pytest.mark.parametrize("levels", [[], [1], [8, 1], [1001], [2] * 63])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels="):
        FSQ(levels)


def test_first_channel_is_the_least_significant_digit():
    fsq = FSQ([8, 5])
    vectors = fsq.decode(torch.tensor([[[0], [1], [8], [39]]]))[0]
    assert vectors.tolist() == [[-1, -1], [-0.75, -1], [-1, -0.5], [0.75, 1]]


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 2, 2], [7, 4]])
def test_zero_is_a_code_and_stays_zero(levels):
    fsq = FSQ(levels)
    zero = torch.zeros(1, 1, len(levels))
    assert torch.equal(fsq.decode(fsq.encode(zero)), zero)
    assert torch.equal(fsq.codes_of(zero), fsq.encode(zero))


def test_the_largest_vocabulary_keeps_its_codes():
    fsq = FSQ([1000] * 6)
    codes = torch.randint(10**18, (1, 1000, 1))
    assert torch.equal(fsq.codes_of(fsq.decode(codes)), codes)


def test_gradient_is_that_of_the_bounded_value():
    fsq = FSQ([5, 8])
    z = torch.randn(1, 20, 2, requires_grad=True)
    (straight,) = torch.autograd.grad(fsq(z).z_BND.sum(), z)
    bounded = torch.tanh(z + fsq.shift_D) * fsq.half_D / torch.tensor([2, 4])
    (expected,) = torch.autograd.grad(bounded.sum(), z)
    torch.testing.assert_close(straight, expected)
    assert float(fsq(z).loss) == 0


@every_combination
@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 3, 16, 17, 64], [1000, 999]], ids=str)
def test_every_form_is_squashing_and_rounding(form, activation, levels):
    fsq = FSQ(levels, form=form, activation=activation).eval()
    z = torch.randn(1, 20_000, len(levels)) * 1.5
    digit, value, distance = rounded(z, levels, form, activation)
    out = fsq(z)
    other = out.codes_BNS // fsq.basis_D % fsq.level_D != digit
    assert bool((distance[other] < 1e-6).all())
    assert int(other.sum()) <= 5
    torch.testing.assert_close(out.z_BND[~other], value.float()[~other], rtol=0, atol=1e-7)


@every_combination
@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 999, 1000])
def test_every_form_reaches_every_level(form, activation, level):
    fsq = FSQ([level], form=form, activation=activation)
    z = torch.linspace(-8, 8, 400_001)[None, :, None]
    codes = fsq.encode(z)
    assert codes.unique().tolist() == list(range(level))
    assert bool((codes[0, 1:] >= codes[0, :-1]).all())
    every = torch.arange(level)[None, :, None]
    assert torch.equal(fsq.codes_of(fsq.decode(every)), every)
    assert float(fsq.decode(every).abs().max()) == 1


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [8, 8, 8, 5, 5, 5], [7, 6, 5], [32, 32, 17]], ids=str)
def test_codes_are_those_of_vector_quantize_pytorch(levels, symmetric, clamp):
    theirs = vqp.FSQ(levels, preserve_symmetry=symmetric, bound_hard_clamp=clamp).eval()
    form, activation = "symmetric" if symmetric else "tanh", "clamp" if clamp else "tanh"
    ours = FSQ(levels, form=form, activation=activation).eval()
    z = torch.randn(1, 262_144, len(levels))
    with torch.inference_mode():
        out, (vectors, codes) = ours(z), theirs(z)
    other = out.codes_BNS[..., 0] != codes
    assert int(other.sum()) <= 5
    distance = rounded(z[other], levels, form, activation)[2].amin(-1)
    assert bool((distance < 1e-6).all())
    torch.testing.assert_close(out.z_BND[~other], vectors[~other], rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "round"}, "form='round': expected tanh, paper or symmetric"),
        ({"activation": "relu"}, "activation='relu': expected tanh, sigmoid or clamp"),
        ({"form": "paper", "activation": "sigmoid"}, "activation='sigmoid': form 'paper'.*expected tanh"),
        ({"form": "paper", "activation": "clamp"}, "activation='clamp': form 'paper'"),
        ({"noise_dropout": 1.5}, r"noise_dropout=1.5: expected a share in \[0, 1\]"),
        ({"noise_dropout": float("nan")}, "noise_dropout=nan"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FSQ([8, 5], **options)


def test_values_that_are_not_finite_are_refused():
    fsq = FSQ([8, 5])
    z = torch.zeros(1, 3, 2)
    z[0, 1] = torch.tensor([float("nan"), float("inf")])
    for verb in (fsq, fsq.encode):
        with pytest.raises(ValueError, match=r"z_BND.*2 NaN.*Inf.*6 values:.*expects finite"):
            verb(z)


@every_combination
def test_gradient_is_that_of_the_squashing(form, activation):
    levels = [5, 8, 4]
    fsq = FSQ(levels, form=form, activation=activation)
    z = torch.randn(1, 40, 3, requires_grad=True)
    out = fsq(z).z_BND
    (gradient,) = torch.autograd.grad(out.sum(), z)
    step = 1e-6
    with torch.no_grad():
        double = FSQ(levels, form=form, activation=activation)._bounded
        ahead, behind = double(z.double() + step), double(z.double() - step)
    torch.testing.assert_close(gradient.double(), (ahead - behind) / (2 * step), atol=2e-5, rtol=1e-4)
    # What is rounded is never further from its value than half a cell.
    assert bool(((fsq._bounded(z) - out).abs() <= 0.5 / fsq.unit_D + 1e-3).all())
    if activation == "clamp":
        outside = (z + fsq.shift_D).abs() > 1
        assert bool(outside.any())
        assert torch.equal(gradient == 0, outside)


def test_noise_replaces_a_share_of_the_values_in_training_and_never_the_codes():
    plain, noisy = FSQ([8, 5], form="symmetric"), FSQ([8, 5], form="symmetric", noise_dropout=0.25)
    z = torch.randn(4, 5000, 2)
    exact, out = plain(z), noisy(z)
    assert torch.equal(out.codes_BNS, exact.codes_BNS)
    assert torch.equal(out.codes_BNS, noisy.encode(z))
    moved = (out.z_BND - exact.z_BND)[out.z_BND != exact.z_BND]
    inside = exact.z_BND.abs() < 0.5  # where the clamp cannot take noise away again
    share = float((out.z_BND != exact.z_BND)[inside].float().mean())
    assert share == pytest.approx(0.25, abs=0.02)
    assert 0.45 < float(moved.abs().max()) <= 0.5 + 1e-6
    assert float(out.z_BND.abs().max()) <= 1
    assert torch.equal(noisy.eval()(z).z_BND, exact.z_BND)


def test_a_cast_of_the_module_moves_no_boundary():
    fsq, z = FSQ([1000, 7]), torch.randn(2, 500, 2)
    exact = fsq.encode(z)
    for cast in (fsq.bfloat16(), fsq.half(), fsq.double(), nn.Sequential(fsq).to("cpu", torch.bfloat16)[0]):
        assert torch.equal(cast.encode(z), exact)
        assert torch.equal(cast.codes_of(cast.decode(exact)), exact)
        assert cast(z.requires_grad_()).z_BND.dtype == torch.float32


def test_vectors_in_bfloat16_lose_no_codes():
    """Vectors in bfloat16 get the codes of the same numbers in float32, and all of those; rounding there would not."""
    fsq = FSQ([1000])
    z = torch.randn(1, 100_000, 1).bfloat16()
    exact = fsq.encode(z.float())
    assert torch.equal(fsq.encode(z), exact)
    low = (torch.tanh(z + fsq.shift_D.bfloat16()) * fsq.half_D.bfloat16() - fsq.offset_D.bfloat16()).round()
    assert len(low.unique()) < 0.7 * len(exact.unique())


def test_masked_positions_are_zero_and_take_no_gradient():
    fsq = FSQ([8, 5], noise_dropout=0.5)
    z = torch.randn(2, 6, 2)
    z[0, 3:] = float("nan")
    z.requires_grad_()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 3:] = False
    out = fsq(z, mask)
    out.z_BND.sum().backward()
    assert torch.equal(out.codes_BNS[mask], fsq.encode(z.detach()[mask][None])[0])
    for zero in (out.z_BND[~mask], out.codes_BNS[~mask], z.grad[~mask]):
        assert not bool(zero.any())
    assert bool((z.grad[mask] != 0).all())


def test_generated_code_gives_the_same():
    """What Inductor makes of it; every option is compiled, without generating code, by the suite of all kinds."""
    fsq = FSQ([8, 5, 5, 5])
    compiled = torch.compile(fsq, fullgraph=True)
    z = torch.randn(2, 50, 4, requires_grad=True)
    out, expected = compiled(z), fsq(z)
    assert torch.equal(out.codes_BNS, expected.codes_BNS)
    torch.testing.assert_close(out.z_BND, expected.z_BND)
    weight = torch.rand(2, 50, 4) + 0.5
    gradients = [torch.autograd.grad((result.z_BND * weight).sum(), z)[0] for result in (out, expected)]
    assert bool((gradients[0] != 0).all())
    torch.testing.assert_close(*gradients)
    fsq.eval()
    with torch.no_grad():
        out, expected = compiled(z), fsq(z)
    assert torch.equal(out.codes_BNS, expected.codes_BNS)
    assert torch.equal(out.z_BND, expected.z_BND)


@pytest.mark.parametrize(("form", "activation"), [("tanh", "tanh"), ("symmetric", "sigmoid"), ("paper", "tanh")])
def test_learns_codes_that_keep_what_matters(form, activation):
    """A linear autoencoder around it, against the same with an encoder that is not trained."""
    centres = torch.randn(24, 3) @ torch.randn(3, 16)

    def batch():
        return centres[torch.randint(24, (8, 32))] + 0.1 * torch.randn(8, 32, 16)

    def run(train_encoder):
        torch.manual_seed(1)
        fsq, encoder, decoder = FSQ([5, 4, 4], form=form, activation=activation), nn.Linear(16, 3), nn.Linear(3, 16)
        trained = [*decoder.parameters(), *(encoder.parameters() if train_encoder else [])]
        optimizer = torch.optim.Adam(trained, lr=0.02)
        for _ in range(300):
            data = batch()
            loss = (decoder(fsq(encoder(data)).z_BND) - data).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            data, codes = batch(), fsq.encode(encoder(batch()))
            return float((decoder(fsq.eval()(encoder(data)).z_BND) - data).square().mean()), len(codes.unique())

    error, used = run(train_encoder=True)
    baseline, used_before = run(train_encoder=False)
    assert error < 0.6 * baseline
    assert used >= 24 > used_before
