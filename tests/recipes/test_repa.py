"""REPA and REPA-E: which term trains what, the published details, what they learn, and what they refuse."""

import math

import pytest
import torch
from torch import nn

import recipes.joint.latent_norm
from backbones import Flow, FlowConfig
from recipes.joint.latent_norm import LatentNorm
from recipes.joint.repa import AlignedBatch, AlignedTokens, RepaConfig, RepaEObjective, RepaObjective
from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.api import Batch, Tokens, TokenSpec
from tokenizers_mm.data.sources import Draw, Examples
from tokenizers_mm.geometry import match_grid
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.towers import Teacher, TowerConfig, build_tower
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.loop import train

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2, middle_attention=False)
TOKENIZER = AutoencoderConfig(image_size=(16, 16), bottleneck={"kind": "gaussian", "dim": 3}, net=NET)
SPEC = TokenSpec(image_size=(16, 16), grid=(4, 4), dim=3)
CONFIG = RepaConfig(layer=2, projector_width=16)


def flow(spec=SPEC, **options):
    """A generator whose weights are all random: fresh ones hold zeros, which pass no gradients on."""
    torch.manual_seed(0)
    model = Flow(FlowConfig(**{"width": 32, "depth": 3, "heads": 2, "classes": 4} | options), spec)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features_of(batch=4, grid=(4, 4), dim=6, seed=1):
    return Semantics(random(batch, math.prod(grid), dim, seed=seed), random(batch, dim, seed=seed + 1), grid)


def examples_of(batch=4, features=True, **options):
    image = random(batch, 3, 16, 16).tanh()
    return Examples(image, (), torch.arange(batch) % 4, features_of(batch, **options) if features else None)


def repa_e(config=CONFIG, generator=None, tokenizer=TOKENIZER, **options):
    generator = generator or flow()
    torch.manual_seed(1)
    return RepaEObjective(generator, build_autoencoder(tokenizer), config, 6, **options).train()


def aligned(batch=4, **options):
    tokens = Tokens(latents_BND=random(batch, 16, 3), grid=(4, 4))
    return AlignedBatch(Batch(tokens, labels_B=torch.arange(batch) % 4), features_of(batch, **options))


# --------------------------------------------------------------------------------------- who learns from what


def parts_of(objective):
    generator = objective.generator
    early = [generator.inputs, generator.grid, *generator.trunk.blocks[:2]]
    parts = {
        "early blocks": early,
        "late blocks": [generator.trunk.blocks[2], generator.head],
        "projector": [objective.projector],
    }
    if isinstance(objective, RepaEObjective):
        tokenizer = objective.tokenizer
        parts["encoder"] = [tokenizer.encoder, tokenizer.quant_conv]
        parts["decoder"] = [tokenizer.decoder, tokenizer.post_quant_conv]
    return {name: [p for module in modules for p in module.parameters()] for name, modules in parts.items()}


def trained_by(objective, batch):
    """Term -> the parts whose parameters get a gradient from it."""
    found = {}
    for term in objective(batch).terms:
        torch.manual_seed(2)
        objective.zero_grad()
        objective(batch).terms[term].backward()
        moved = {
            name: [p.grad is not None and bool(p.grad.any()) for p in ps] for name, ps in parts_of(objective).items()
        }
        assert all(any(flags) == all(flags) or name == "encoder" for name, flags in moved.items())
        found[term] = {name for name, flags in moved.items() if any(flags)}
    return found


def test_in_repa_both_terms_train_the_generator():
    assert trained_by(RepaObjective(flow(), CONFIG, 6), aligned()) == {
        "velocity": {"early blocks", "late blocks"},
        "repa": {"early blocks", "projector"},
    }


def test_in_repa_e_alignment_trains_the_tokenizer_and_the_velocity_does_not():
    assert trained_by(repa_e(), examples_of()) == {
        "velocity": {"early blocks", "late blocks"},
        "repa": {"early blocks", "projector"},
        "repa_tokenizer": {"encoder"},
        "l1": {"encoder", "decoder"},
        "kl": {"encoder"},
    }


# ----------------------------------------------------------------------------------------- published details


def test_both_passes_share_noise_and_times_and_only_the_generators_drops_conditions():
    objective = repa_e(generator=flow(drop_condition=0.5))
    calls = []
    objective.generator.register_forward_pre_hook(
        lambda module, inputs, options: calls.append((*inputs, options)), with_kwargs=True
    )
    objective(examples_of())
    (fixed, _, seen, how), (normed, _, drawn, _) = calls
    assert how == {"layer": 2, "stop": True}
    assert torch.equal(seen.noise_BND, drawn.noise_BND)
    assert torch.equal(seen.t_B, drawn.t_B)
    assert seen.drop_B is None
    assert drawn.drop_B is not None
    assert fixed.requires_grad
    assert not normed.requires_grad


def test_terms_against_their_formulas():
    objective = repa_e(
        RepaConfig(layer=2, projector_width=16, weight=0.25, tokenizer_weight=2.0, l1=3.0, bottleneck=0.1)
    )
    batch, calls = examples_of(), []
    objective.generator.register_forward_hook(lambda module, inputs, output: calls.append(output))
    torch.manual_seed(5)
    terms = objective(batch).terms
    for name, weight, states in (("repa_tokenizer", 2.0, calls[0]), ("repa", 0.25, calls[1])):
        cosine = torch.cosine_similarity(objective.projector(states.hidden_BLE), batch.features.patch_BND, dim=-1)
        torch.testing.assert_close(terms[name], weight * (1 - cosine.mean()))
    assert terms["velocity"] == calls[1].loss
    torch.manual_seed(5)
    recon, quantized = objective.tokenizer(batch.image_BCHW)
    torch.testing.assert_close(terms["l1"], 3 * (recon - batch.image_BCHW).abs().mean())
    torch.testing.assert_close(terms["kl"], 0.1 * quantized.loss)


@pytest.mark.parametrize("patch", [1, 2])
def test_features_are_brought_to_the_grid_of_the_patches(patch):
    objective, batch = RepaObjective(flow(patch=patch), CONFIG, 6), aligned(grid=(7, 7))
    side = 4 // patch
    matched = Semantics(
        match_grid(batch.features.patch_BND, (7, 7), (side, side)), batch.features.pooled_BD, (side, side)
    )
    found = []
    for features in (batch.features, matched):
        torch.manual_seed(0)
        found.append(objective(AlignedBatch(batch.batch, features)).terms["repa"])
    torch.testing.assert_close(*found)


def test_latents_are_normalised_as_batch_norm_does():
    """`torch.nn.BatchNorm1d` without scale and shift, eps 1e-4, momentum .1."""
    mean, std = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.3, 1.0])
    ours, other = LatentNorm(mean, std), nn.BatchNorm1d(3, eps=1e-4, momentum=0.1, affine=False)
    other.running_mean.copy_(mean)
    other.running_var.copy_(std**2)
    for step in range(3):
        z = 3 * random(4, 16, 3, seed=step) + step
        torch.testing.assert_close(ours(z), other(z.flatten(0, 1)).view_as(z))
    torch.testing.assert_close(ours.mean_D, other.running_mean)
    torch.testing.assert_close(ours.variance_D, other.running_var)
    ours.eval(), other.eval()
    before = ours.mean_D.clone()
    torch.testing.assert_close(ours(z), other(z.flatten(0, 1)).view_as(z))
    torch.testing.assert_close(ours.fixed(z), ours(z))
    assert torch.equal(ours.mean_D, before)


def test_statistics_of_latents_are_those_of_all_processes(monkeypatch):
    """This process sees half of the batch; what it is told of the other half makes it equal to one that sees all."""
    mean, std = torch.zeros(3), torch.ones(3)
    whole, half, z = LatentNorm(mean, std), LatentNorm(mean, std), 3 * random(4, 16, 3) + 1
    expected, rest = whole(z), z[2:].flatten(0, 1)
    told = [rest.mean(0), (rest - z.flatten(0, 1).mean(0)).square().mean(0)]
    monkeypatch.setattr(recipes.joint.latent_norm, "processes", lambda: 2)
    monkeypatch.setattr(recipes.joint.latent_norm, "sum_over_processes", lambda value: value + told.pop(0))
    torch.testing.assert_close(half(z[:2]), expected[:2])
    torch.testing.assert_close(half.mean_D, whole.mean_D)
    torch.testing.assert_close(half.variance_D, whole.variance_D)


def test_alignment_alone_moves_no_statistics():
    objective = repa_e(RepaConfig(layer=2, projector_width=16, momentum=1.0))
    z = random(4, 16, 3)
    before = objective.latents.mean_D.clone()
    objective.latents.fixed(z)
    assert torch.equal(objective.latents.mean_D, before)
    objective(examples_of())
    assert not torch.equal(objective.latents.mean_D, before)


def test_a_finished_tokenizer_gives_the_latents_the_generator_knows():
    objective, image = repa_e(), examples_of().image_BCHW
    for _ in range(3):
        objective(examples_of())
    objective.eval().finish()
    plain = objective.tokenizer.posterior(image)[0]
    assert (objective.latents.fixed(plain) - plain).abs().max() > 0.1
    torch.testing.assert_close(objective.tokenizer.encode(image).latents_BND, objective.latents.fixed(plain))


def test_the_teacher_speaks_where_the_batch_brings_no_features():
    tower = build_tower(TowerConfig(name="timm:test_vit", image_size=16, input_size=160), random_init=True)
    torch.manual_seed(1)
    objective = RepaEObjective(flow(), build_autoencoder(TOKENIZER), CONFIG, tower.spec.dim, teacher=Teacher(tower))
    batch = examples_of(features=False)
    known = Examples(batch.image_BCHW, (), batch.labels_B, tower.semantics(batch.image_BCHW))
    found = []
    for given in (batch, known):
        torch.manual_seed(0)
        found.append(objective(given).terms["repa"])
    torch.testing.assert_close(*found)
    assert not any("teacher" in name or "tower" in name for name in objective.state_dict())


# -------------------------------------------------------------------------------------------------- learning


def cosine_after_training(*, paired):
    """Align hidden states with features that are a linear map of the clean latents; cosine on images never seen."""
    torch.manual_seed(0)
    latents, labels = random(160, 16, 3), torch.zeros(160, dtype=torch.int64)
    order = torch.arange(160) if paired else torch.randperm(160)
    features = Semantics((latents @ random(3, 6, seed=7))[order], random(160, 6), (4, 4))
    objective = RepaObjective(Flow(FlowConfig(width=32, depth=3, heads=2, classes=1), SPEC), CONFIG, 6)
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)

    def losses(rows):
        tokens = Tokens(latents_BND=latents[rows], grid=(4, 4))
        return objective(AlignedBatch(Batch(tokens, labels_B=labels[rows]), features[rows]))

    for step in range(60):
        optimizer.zero_grad()
        sum(losses(torch.arange(32) + 32 * (step % 4)).terms.values()).backward()
        optimizer.step()
    with torch.no_grad():
        return losses(torch.arange(128, 160)).stats["cosine"].item()


def test_hidden_states_learn_the_features_and_nothing_from_those_of_other_images():
    # Of the noised latents the best guess reaches .62: the mean of t / sqrt(t^2 + (1 - t)^2).
    assert cosine_after_training(paired=True) > 0.45
    assert cosine_after_training(paired=False) < 0.15


class Images:
    """A source of four images with labels and cached features."""

    def __len__(self):
        return 4

    def batch(self, draws):
        index = [draw.index for draw in draws]
        whole = examples_of()
        return Examples(whole.image_BCHW[index], (), whole.labels_B[index], whole.features[index])


def test_the_training_loop_takes_it(tmp_path):
    config = TrainConfig(steps=6, batch_size=4, accumulate=2, warmup=0, learning_rate=3e-3, log_every=1, tracker="none")
    history = train(repa_e(), Images(), config, tmp_path)
    assert {"velocity", "repa", "repa_tokenizer", "l1", "kl"} <= set(history[0])
    assert history[-1]["l1"] < history[0]["l1"]


# ------------------------------------------------------------------------------------------------- bad input


class Store:
    """What `AlignedTokens` needs of a token store."""

    def __init__(self):
        self.latents = random(4, 16, 3)

    def __len__(self):
        return 4

    def batch(self, draws):
        index = [draw.index for draw in draws]
        return Batch(Tokens(latents_BND=self.latents[index], grid=(4, 4)), labels_B=torch.tensor(index))


def test_a_store_is_paired_with_features_by_item():
    source = AlignedTokens(Store(), features_of())
    batch = source.batch([Draw(2, 0), Draw(0, 1)]).to("cpu")
    assert (len(source), len(batch)) == (4, 2)
    assert batch.batch.labels_B.tolist() == [2, 0]
    assert torch.equal(batch.features.patch_BND, features_of().patch_BND[[2, 0]])
    with pytest.raises(ValueError, match=r"features: 3.*4 images;"):
        AlignedTokens(Store(), features_of(3))
    with pytest.raises(ValueError, match="features: 2 for 4 images"):
        AlignedBatch(aligned().batch, features_of(2))


SEQUENCE = TokenSpec(image_size=(16, 16), grid=(16,), dim=3, layout="sequence")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RepaObjective(flow(), RepaConfig(layer=4), 6), r"layer=4: this generator has the blocks 1\.\.3"),
        (lambda: RepaObjective(flow(SEQUENCE), CONFIG, 6), r"grid is \(16,\): only patches"),
        (lambda: repa_e(generator=flow(TokenSpec(image_size=(16, 16), grid=(2, 2), dim=3))), "they must be one"),
        (lambda: repa_e(RepaConfig(layer=2, perceptual=1.0)), "perceptual=1.0: a perceptual network is needed"),
        (lambda: repa_e()(examples_of(features=False)), "features: the batch brings none"),
        (lambda: repa_e()(Examples(torch.zeros(4, 3, 16, 16), features=features_of())), "carries no labels_B"),
        (lambda: RepaConfig(weight=-1.0), "weight=-1.0: a weight cannot be negative"),
        (lambda: RepaConfig(layer=0), "layer=0"),
        (lambda: RepaConfig(momentum=0.0), "momentum=0.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
