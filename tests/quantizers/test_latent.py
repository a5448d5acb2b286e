import pytest
import torch
from torch import nn

from quantizers import Latent


def with_values(levels, rows, **options):
    """A quantizer that has learned these values."""
    latent = Latent(levels, **options)
    with torch.no_grad():
        for value_L, row in zip(latent.values, rows, strict=True):
            value_L.copy_(torch.tensor(row))
    return latent


def nearest(z, latent):
    """Digits in float64 by looking at every value, and how much nearer than the second the first is."""
    digit, margin = [], []
    for channel, values in zip(z.double().unbind(-1), latent.values, strict=True):
        two = (channel[..., None] - values.detach().double()).abs().topk(2, largest=False)
        digit.append(two.indices[..., 0])
        margin.append(two.values[..., 1] - two.values[..., 0])
    return torch.stack(digit, -1), torch.stack(margin, -1)


def test_values_start_evenly_with_zero_among_them():
    five, eight, two, six = Latent([5, 8, 2, 6]).values
    assert five.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    assert eight.tolist() == [-0.5, -0.375, -0.25, -0.125, 0, 0.125, 0.25, 0.375]
    assert two.tolist() == [-0.5, 0]
    torch.testing.assert_close(six, torch.tensor([-3.0, -2, -1, 0, 1, 2]) / 6)


@pytest.mark.parametrize("levels", [[5, 5, 8], [6, 10, 3, 2], [100, 7], [2] * 20], ids=str)
def test_takes_the_nearest_value_in_whatever_order_they_were_learned(levels):
    latent = with_values(levels, [torch.randn(level).tolist() for level in levels])
    z = torch.randn(2, 3000, len(levels))
    digit, margin = nearest(z, latent)
    out = latent(z)
    ours = out.codes_BNS // latent.basis_D % latent.level_D
    other = ours != digit
    assert bool((margin[other] < 1e-6).all())
    assert int(other.sum()) <= 3
    chosen = torch.stack([values[i] for values, i in zip(latent.values, ours.unbind(-1), strict=True)], -1)
    assert torch.equal(latent.decode(out.codes_BNS), chosen)
    assert torch.equal(out.z_BND, chosen)


@pytest.mark.parametrize("levels", [[5, 5, 8], [6, 7, 12], [3, 2, 3, 10]], ids=str)
def test_every_code_comes_back_also_with_values_out_of_order(levels):
    for rows in (None, [torch.randperm(level).float().tolist() for level in levels]):
        latent = Latent(levels) if rows is None else with_values(levels, rows)
        codes = torch.arange(latent.codes[0])[None, :, None]
        vectors = latent.decode(codes)
        assert torch.equal(latent.codes_of(vectors), codes)
        assert len(vectors[0].unique(dim=0)) == latent.codes[0]


def test_neighbouring_floats_are_told_apart_and_of_equal_values_the_first_is_taken():
    one = torch.tensor(1.0)
    after = torch.nextafter(one, torch.tensor(2.0))
    latent = with_values([4], [[after.item(), 1.0, 1.0, -3.0]])
    codes = latent.encode(torch.stack([one, after, torch.tensor(-9.0), torch.tensor(9.0)])[None, :, None])
    assert codes.flatten().tolist() == [1, 0, 3, 0]


def test_first_channel_is_the_least_significant_digit():
    latent = with_values([3, 2], [[10.0, 30, 20], [1.0, 0]])
    vectors = latent.decode(torch.tensor([[[0], [1], [2], [3]]]))[0]
    assert vectors.tolist() == [[10, 1], [30, 1], [20, 1], [10, 0]]


def test_the_two_terms_move_vectors_and_values_apart():
    z = torch.randn(2, 50, 2, requires_grad=True)
    latent = Latent([5, 4], commitment=0.3, codebook=0.7)
    q = latent.decode(latent.encode(z.detach()))
    out = latent(z)
    distance = (z.detach() - q.detach()).square().mean()
    torch.testing.assert_close(out.loss.detach(), distance)
    by_z, by_value = torch.autograd.grad(out.loss, (z, latent.value_DL))
    torch.testing.assert_close(by_z, 0.3 * 2 * (z.detach() - q.detach()) / z.numel())
    (expected,) = torch.autograd.grad(0.7 * (q - z.detach()).square().mean(), latent.value_DL)
    torch.testing.assert_close(by_value, expected)
    assert not bool(by_value[~latent.is_value_DL].any())
    # The reconstruction's gradient passes to the input whole, and leaves the values alone.
    by_z, by_value = torch.autograd.grad(latent(z).z_BND.sum(), (z, latent.value_DL), allow_unused=True)
    assert torch.equal(by_z, torch.ones_like(z))
    assert by_value is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": []}, r"levels=\(\): expected at least one channel"),
        ({"levels": [5, 1]}, r"levels=\(5, 1\).*2 or more"),
        ({"levels": [2] * 63}, "do not fit an int64"),
        ({"levels": [5], "commitment": -1.0}, "commitment=-1.0: may not be negative"),
        ({"levels": [5], "codebook": float("inf")}, "codebook=inf"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        Latent(**arguments)


def test_masked_positions_count_for_nothing():
    latent = Latent([5, 4])
    z = torch.randn(2, 6, 2)
    mask = torch.arange(6) < torch.tensor([[3], [6]])
    alone = latent(torch.cat([z[0, :3], z[1]])[None])
    z[~mask] = float("nan")
    z.requires_grad_()
    out = latent(z, mask)
    torch.testing.assert_close(out.loss, alone.loss)
    assert torch.equal(out.codes_BNS[mask], alone.codes_BNS[0])
    by_value, by_z = torch.autograd.grad(out.loss + out.z_BND.sum(), (latent.value_DL, z))
    torch.testing.assert_close(by_value, torch.autograd.grad(alone.loss, latent.value_DL)[0])
    for zero in (out.z_BND[~mask], out.codes_BNS[~mask], by_z[~mask]):
        assert not bool(zero.any())


def test_vectors_in_bfloat16_lose_no_codes():
    latent = Latent([500])
    z = (torch.rand(1, 100_000, 1) - 0.5).bfloat16()
    exact = latent.encode(z.float())
    assert torch.equal(latent.encode(z), exact)
    low = (z - latent.value_DL.detach().bfloat16()).abs().argmin(-1, keepdim=True)
    assert float((low == exact).float().mean()) < 0.95


def test_values_settle_on_the_data():
    """Channels that take three values each: ten times nearer after learning than the values to start with."""
    places = torch.tensor([[-1.7, 0.1, 2.3], [-0.9, 0.2, 1.1]])
    latent = Latent([3, 3])
    optimizer = torch.optim.Adam(latent.parameters(), lr=0.02)

    def batch():
        z = torch.stack([row[torch.randint(3, (4, 64))] for row in places], -1)
        return z + 0.03 * torch.randn_like(z)

    def error():
        z = batch()
        return float((latent.decode(latent.encode(z)) - z).detach().square().mean())

    before = error()
    for _ in range(300):
        optimizer.zero_grad()
        latent(batch()).loss.backward()
        optimizer.step()
    assert error() < 0.1 * before
    assert len(latent.encode(batch()).unique()) == 9


def test_learns_codes_that_keep_what_matters():
    """A linear autoencoder around it, against the same with an encoder and values that are not trained."""
    centres = torch.randn(24, 3) @ torch.randn(3, 16)

    def batch():
        return centres[torch.randint(24, (8, 32))] + 0.1 * torch.randn(8, 32, 16)

    def run(whole):
        torch.manual_seed(1)
        latent, encoder, decoder = Latent([5, 4, 4]), nn.Linear(16, 3), nn.Linear(3, 16)
        rest = [*encoder.parameters(), *latent.parameters()] if whole else []
        optimizer = torch.optim.Adam([*decoder.parameters(), *rest], lr=0.02)
        for _ in range(300):
            data = batch()
            out = latent(encoder(data))
            loss = (decoder(out.z_BND) - data).square().mean() + out.loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            data = batch()
            out = latent(encoder(data))
            return float((decoder(out.z_BND) - data).square().mean()), len(out.codes_BNS.unique())

    error, used = run(whole=True)
    baseline, _ = run(whole=False)
    assert error < 0.6 * baseline
    assert used >= 24
