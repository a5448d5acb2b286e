"""The flow generator: shapes, guidance, conditions, that it learns, and what it refuses."""

import pytest
import torch

from backbones import Flow, FlowConfig
from tokenizers_mm.api import Batch, Tokens, TokenSpec
from tokenizers_mm.blocks.patches import unpatchify

RASTER = TokenSpec(image_size=(16, 16), grid=(4, 2), dim=3)
SEQUENCE = TokenSpec(image_size=(16, 16), grid=(5,), dim=3, layout="sequence")
SCALES = TokenSpec(image_size=(16, 16), grid=((1, 1), (2, 2)), dim=3, layout="scales")
CAPTIONS = ["red cat", "a blue dog", ""]


def build(spec=RASTER, **options):
    """A small generator whose weights are all random, so that everything has an effect."""
    torch.manual_seed(0)
    model = Flow(FlowConfig(width=32, depth=2, heads=2, **options), spec)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def tokens_of(spec, count=3):
    latents = torch.randn(count, spec.length, spec.dim, generator=torch.Generator().manual_seed(1))
    return Tokens(latents_BND=latents, grid=spec.grid)


@pytest.mark.parametrize(
    ("spec", "patch"), [(RASTER, 1), (RASTER, 2), (SEQUENCE, 1), (SCALES, 1)], ids=["raster", "patch", "1d", "scales"]
)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_samples_fit_the_spec_and_follow_the_seed(spec, patch, solver):
    model = build(spec, patch=patch)
    first, again, other = (model.sample(CAPTIONS, seed=seed, steps=3, solver=solver) for seed in (5, 5, 6))
    assert first.check(spec).grid == spec.grid
    assert torch.equal(first.latents_BND, again.latents_BND)
    assert not torch.allclose(first.latents_BND, other.latents_BND)


def test_guidance_one_is_the_conditional_model_and_zero_the_null_one():
    model = build()
    plain = model.sample(CAPTIONS, seed=1, steps=4).latents_BND
    near_one = model.sample(CAPTIONS, seed=1, steps=4, guidance=1 + 1e-12).latents_BND
    torch.testing.assert_close(near_one, plain, atol=1e-5, rtol=1e-5)
    null = model.sample([""] * 3, seed=1, steps=4).latents_BND
    torch.testing.assert_close(model.sample(CAPTIONS, seed=1, steps=4, guidance=0).latents_BND, null)
    assert not torch.allclose(plain[:2], null[:2], atol=1e-3)
    torch.testing.assert_close(plain[2], null[2], atol=1e-5, rtol=1e-5)


def test_sampling_integrates_the_predicted_velocity_from_time_zero():
    model = build()
    noise = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(9))
    expected = noise + model.velocity(noise, torch.zeros(3), model.condition(CAPTIONS))
    torch.testing.assert_close(model.sample(CAPTIONS, seed=9, steps=1).latents_BND, expected.detach())


def test_the_velocity_depends_on_time_condition_and_every_position():
    model, x = build(), tokens_of(RASTER).latents_BND
    prefix, null = model.condition(CAPTIONS), model.condition([""] * 3)
    base = model.velocity(x, torch.full((3,), 0.5), prefix)
    assert not torch.allclose(base, model.velocity(x, torch.full((3,), 0.6), prefix))
    assert not torch.allclose(base[0], model.velocity(x, torch.full((3,), 0.5), null)[0])
    moved = x.clone()
    moved[:, -1] += 1
    assert (model.velocity(moved, torch.full((3,), 0.5), prefix) != base).any(-1).all()


def test_padding_of_other_captions_changes_nothing():
    model, x, t = build(), tokens_of(RASTER).latents_BND, torch.tensor([0.1, 0.5, 0.9])
    together = model.velocity(x, t, model.condition(CAPTIONS))
    for row, caption in enumerate(CAPTIONS):
        alone = model.velocity(x[row : row + 1], t[row : row + 1], model.condition([caption]))
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=1e-5)


def test_a_fresh_model_predicts_zero_and_the_loss_is_two():
    torch.manual_seed(0)
    spec = TokenSpec(image_size=(16, 16), grid=(8, 8), dim=16)
    tokens = Tokens(latents_BND=torch.randn(32, 64, 16), grid=(8, 8))
    loss = Flow(FlowConfig(width=16, depth=1, heads=1), spec).loss(Batch(tokens, [""] * 32))
    assert loss["velocity"].item() == pytest.approx(2.0, abs=0.03)  # Var(data - noise) of unit-variance latents


def pass_of(model, layer=None, stop=False, data=None, seed=3):
    torch.manual_seed(seed)
    data = tokens_of(RASTER).latents_BND if data is None else data
    return model(data, CAPTIONS, model.draw(data), layer=layer, stop=stop)


def test_hidden_states_are_those_on_the_way_to_the_velocity():
    model, data = build(patch=2), tokens_of(RASTER).latents_BND
    torch.manual_seed(3)
    draw = model.draw(data)
    x = draw.t_B[:, None, None] * data + (1 - draw.t_B[:, None, None]) * draw.noise_BND
    assert model.hidden_grid == (2, 1)
    assert pass_of(model, layer=1).hidden_BLE.shape == (3, 2, 32)
    last = pass_of(model, layer=2).hidden_BLE
    predicted = unpatchify(model.head(model.trunk.norm(last)), (4, 2), 2)
    torch.testing.assert_close(predicted, model.velocity(x, draw.t_B, model.condition(CAPTIONS)))
    expected = (predicted - (data - draw.noise_BND)).square().mean()
    torch.testing.assert_close(pass_of(model, layer=2).loss, expected)
    torch.manual_seed(3)
    assert model.loss(Batch(tokens_of(RASTER), CAPTIONS))["velocity"] == pass_of(model).loss
    assert pass_of(model).hidden_BLE is None


def test_a_pass_may_stop_at_the_hidden_state():
    model = build()
    stopped, whole = pass_of(model, layer=1, stop=True), pass_of(model, layer=1)
    assert stopped.loss is None
    assert torch.equal(stopped.hidden_BLE, whole.hidden_BLE)
    stopped.hidden_BLE.sum().backward()
    first, second = model.trunk.blocks
    assert all(p.grad is not None for p in first.parameters())
    assert all(p.grad is None for p in (*second.parameters(), *model.head.parameters()))


def test_gradients_reach_the_latents():
    data = tokens_of(RASTER).latents_BND.requires_grad_()
    states = pass_of(build(), layer=1, data=data)
    for value in (states.loss, states.hidden_BLE.square().sum()):
        (gradient,) = torch.autograd.grad(value, data, retain_graph=True)
        assert (gradient != 0).all()


@pytest.mark.parametrize("options", [{"layer": 0}, {"layer": 3}, {"layer": -1}, {"stop": True}])
def test_a_layer_that_is_not_there_is_refused(options):
    with pytest.raises(ValueError, match=r"layer=\S+: this generator has the blocks 1\.\.2"):
        pass_of(build(), **options)


def test_conditions_are_dropped_in_training_only():
    data = tokens_of(RASTER, 200).latents_BND
    model = build(drop_condition=0.3)
    assert model.draw(data).drop_B is None
    assert model.train().draw(data).drop_B.float().mean().item() == pytest.approx(0.3, abs=0.1)


def trained_error(captions, density="uniform"):
    """Train on two images told apart by their caption; error of samples for the true captions."""
    torch.manual_seed(0)
    spec = TokenSpec(image_size=(8, 8), grid=(2, 2), dim=2)
    kinds = torch.arange(32) % 2
    data = torch.where(kinds[:, None, None] == 0, 1.0, -1.0) * torch.ones(32, 4, 2)
    model = Flow(FlowConfig(width=32, depth=2, heads=2, drop_condition=0.0, density=density), spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(80):
        loss = model.loss(Batch(Tokens(latents_BND=data, grid=(2, 2)), captions(kinds, generator)))
        optimizer.zero_grad()
        loss["velocity"].backward()
        optimizer.step()
    model.eval()
    found = model.sample([f"kind {k}" for k in kinds.tolist()], seed=2, steps=10).latents_BND
    return (found - data).square().mean().item()


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_it_learns_what_the_caption_says(density):
    assert trained_error(lambda kinds, _: [f"kind {k}" for k in kinds.tolist()], density) < 0.1


def test_shuffled_captions_tell_it_nothing():
    def shuffled(kinds, generator):
        return [f"kind {k}" for k in torch.randint(0, 2, kinds.shape, generator=generator).tolist()]

    assert trained_error(shuffled) > 1.0  # guessing is 2: half of the images are off by 2 everywhere


def test_class_labels_are_a_condition():
    model, tokens = build(classes=4), tokens_of(RASTER)
    labels = torch.tensor([0, 3, 1])
    assert set(model.loss(Batch(tokens, labels_B=labels))) == {"velocity"}
    samples = [model.sample(y, seed=0, steps=2, guidance=2.0).latents_BND for y in (labels, labels.flip(0))]
    assert not torch.allclose(*samples)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: m.loss(Batch(t, ["a", "b"])), "2 captions for 3 images"),
        (lambda m, t: m.loss(Batch(t)), "captions are empty"),
        (lambda m, t: m.loss(Batch(Tokens(latents_BND=t.latents_BND / 0, grid=t.grid), CAPTIONS)), "NaN or Inf"),
        (lambda m, t: m.loss(Batch(Tokens(latents_BND=t.latents_BND), CAPTIONS)), r"grid \(8,\).*built for \(4, 2\)"),
        (lambda m, t: m.loss(Batch(Tokens(codes_BNS=torch.zeros(3, 8, 1).long()), CAPTIONS)), "these tokens are codes"),
        (lambda m, t: m.loss(Batch(t, ["x" * 129, "", ""])), "has 129 bytes, the limit is 128"),
        (lambda m, t: m.sample([]), "captions are empty"),
        (lambda m, t: m.sample(CAPTIONS, solver="rk4"), "solver='rk4'"),
        (lambda m, t: m.sample(CAPTIONS, steps=0), "steps=0"),
        (lambda m, t: m.sample(CAPTIONS, guidance=-1), "guidance=-1"),
        (lambda m, t: m.sample(torch.tensor([1])), r"reads captions \(classes=0\)"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(build(), tokens_of(RASTER))


def test_bad_specs_and_options_are_refused():
    with pytest.raises(ValueError, match=r"use backbones\.Autoregressive"):
        Flow(FlowConfig(), TokenSpec(image_size=(8, 8), grid=(2, 2), dim=4, codes=(8,)))
    with pytest.raises(ValueError, match=r"patch=2:.*divides,.*sequence \(5,\)"):
        Flow(FlowConfig(patch=2), SEQUENCE)
    with pytest.raises(ValueError, match="patch=3: needs a raster grid"):
        Flow(FlowConfig(patch=3), RASTER)
    with pytest.raises(ValueError, match="density='cosine': expected one of uniform, logit_normal"):
        FlowConfig(density="cosine")
    with pytest.raises(ValueError, match="patch=0: at least 1"):
        FlowConfig(patch=0)


def test_which_solver_and_which_times_a_flow_uses():
    """Heun's method evaluates t = 1, where the flow is trained as anywhere; times are one in each equal share."""
    seen = []
    for density in ("uniform", "logit_normal"):
        model = Flow(FlowConfig(width=32, depth=1, heads=2, density=density), RASTER)
        t_B = model.draw(torch.randn(64, 8, 3)).t_B
        share = t_B if density == "uniform" else torch.special.ndtr(t_B.logit())
        assert sorted((share * 64).long().tolist()) == list(range(64))
    model.velocity = lambda x, t, prefix: seen.append(float(t[0])) or x
    model.sample([""], steps=2, solver="heun", seed=0)
    assert seen == [0, 0.5, 0.5, 1]
