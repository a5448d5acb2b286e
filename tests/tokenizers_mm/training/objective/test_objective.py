"""Training with everything on: the bugs that published trainers have had, each as a test that fails with the bug."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.data.sources import Examples, ImageArrays, draws_for
from tokenizers_mm.losses.alignment import Alignment, AlignmentConfig
from tokenizers_mm.losses.discriminator_training import AdversarialConfig, Adversary
from tokenizers_mm.losses.perceptual import Perceptual, feature_distance
from tokenizers_mm.models.semantic_head import SemanticConfig
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.nets.discriminators import PatchConfig, build_discriminator
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.towers import NGramTextConfig, TowerConfig
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.loop import train
from tokenizers_mm.training.objective import ObjectiveConfig, TokenizerObjective
from tokenizers_mm.training.objective.adaptive_weights import Balance
from tokenizers_mm.training.objective.freeze import freeze
from tokenizers_mm.training.step import DivergenceError

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2, middle_attention=False)
FSQ, VQ = (
    {"kind": "fsq", "levels": [8, 5, 5]},
    {"kind": "vq", "size": 32, "dim": 3, "codebook": "gradient", "revive": 0},
)
CONFIG = TrainConfig(
    steps=6, batch_size=8, warmup=1, ema=0.9, log_every=1, checkpoint_every=3, tracker="none", learning_rate=1e-3
)
ADVERSARIAL = AdversarialConfig(
    weight=0.5, start=2, warmup=1, lecam=0.01, discriminator=PatchConfig(channels=8, layers=2), learning_rate=1e-3
)
ALIGNMENT = AlignmentConfig(teacher=TowerConfig(name="lite0"), weight=0.3, adaptive=True, margins=(0.1, 0.2))
FULL = ObjectiveConfig(l1=0.5, l2=1, perceptual=0.2, bottleneck=0.1, adversarial=ADVERSARIAL, alignment=ALIGNMENT)


class Captioned(ImageArrays):
    """13 images of 32 x 32 with captions; some captions occur twice."""

    def __init__(self, broken_at=None):
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (13, 4, 4, 3), np.uint8)
        super().__init__(np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8)))
        self.captions = [f"picture {i % 11}" for i in range(13)]

    def batch(self, draws):
        return Examples(super().batch(draws), tuple(self.captions[draw.index] for draw in draws))


class Distance(nn.Module):
    """A perceptual network of one random convolution."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)  # frozen and not saved: a resumed run builds the same again
            self.net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.SiLU())

    def forward(self, image_BCHW, target_BCHW):
        return feature_distance([self.net(image_BCHW)], [self.net(target_BCHW)])


class Colours(nn.Module):
    """A teacher that knows the mean colours of a 4 x 4 grid."""

    def forward(self, image_BCHW):
        generator = torch.Generator().manual_seed(3)
        patch_BND = nn.functional.avg_pool2d(image_BCHW, 8).flatten(2).mT @ torch.randn(3, 10, generator=generator)
        return Semantics(patch_BND, patch_BND.mean(1), (4, 4))


def objective_of(config=FULL, bottleneck=FSQ, seed=0, frozen=(), net=NET, **model):
    torch.manual_seed(seed)
    autoencoder = build_autoencoder(AutoencoderConfig(image_size=(32, 32), bottleneck=bottleneck, net=net, **model))
    if bottleneck["kind"] == "vq":
        autoencoder.bottleneck(torch.randn(2, 64, 3))  # else its rows would be drawn from the first micro-batch
    modules = {"perceptual": Perceptual(Distance(), "stub", "")}
    if config.adversarial is not None:
        modules["adversary"] = Adversary(build_discriminator(config.adversarial.discriminator), config.adversarial)
    if config.alignment is not None:
        modules["alignment"] = Alignment(config.alignment, autoencoder.bottleneck.dim, 10)
    return TokenizerObjective(
        autoencoder, config, **modules, teachers={"alignment": Colours()}, frozen=freeze(autoencoder, frozen)
    )


def run(folder, config=CONFIG, objective=None, **options):
    objective = objective_of() if objective is None else objective
    history = train(objective, Captioned(), config, folder, **options)
    return objective, history


def weights(folder, step=None):
    """Objective and discriminator, their optimisers and the averages, as flat tensors."""
    folders = sorted((folder / "checkpoints").glob("step_*"))
    newest = folders[-1] if step is None else folder / "checkpoints" / f"step_{step:07d}"
    return {f"{f.stem}.{k}": v for f in sorted(newest.glob("*.safetensors")) for k, v in load_file(f).items()}


# -------------------------------------------------------------------------------------------------- the discriminator


def test_objective_and_discriminator_learn_each_from_its_own_loss(tmp_path):
    start = objective_of()
    before = {name: p.clone() for name, p in start.adversary.named_parameters()}
    objective, history = run(tmp_path / "run")
    assert all(not torch.equal(before[name], p) for name, p in objective.adversary.named_parameters())
    # Feeling it from step 2 on, trained from step 1 on; its first adaptive weight is known one step later.
    assert ["discriminator" in row for row in history] == [False, True, True, True, True, True]
    assert ["adversarial" in row for row in history] == [False, False, True, True, True, True]
    assert history[2]["adversarial_weight"] == 0 < history[3]["adversarial_weight"]
    assert all(p.grad is None or not p.grad.any() for p in objective.adversary.parameters())
    state = weights(tmp_path / "run")
    assert any(name.startswith("adversary.discriminator") for name in state)
    assert any(name.startswith("adversary_optimizer.") for name in state)
    assert "adversary" not in {name.split(".")[0] for name in objective.state_dict()}


def test_the_discriminator_does_not_move_while_it_rests(tmp_path):
    config = replace(FULL, adversarial=replace(ADVERSARIAL, start=100, warmup=0))
    objective = objective_of(config)
    before = [p.clone() for p in objective.adversary.parameters()]
    run(tmp_path / "run", objective=objective)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.adversary.parameters(), strict=True))


def test_an_interrupted_run_resumes_exactly_with_the_discriminator(tmp_path):
    run(tmp_path / "whole")
    objective = objective_of()

    def stop():
        raise ConnectionError

    with pytest.raises(ConnectionError):
        run(tmp_path / "cut", replace(CONFIG, picture_every=5), objective, picture=stop)
    record = tmp_path / "cut" / "run.json"
    record.write_text(record.read_text().replace('"picture_every": 5', '"picture_every": 0'))
    run(tmp_path / "cut", objective=objective_of(seed=1), resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_an_exploding_discriminator_stops_the_run_by_name(tmp_path):
    config = replace(FULL, adversarial=replace(ADVERSARIAL, bound=1e-3))
    with pytest.raises(DivergenceError, match=r"2: discriminator:.*largest.*Last.*checkpoint:"):
        run(tmp_path / "run", objective=objective_of(config))


def test_a_nan_in_the_discriminator_stops_the_run_by_name(tmp_path):
    objective = objective_of()
    with torch.no_grad():
        next(objective.adversary.parameters()).fill_(float("nan"))
    before = {k: v.clone() for k, v in objective.adversary.state_dict().items() if "averages" not in k}
    with pytest.raises(DivergenceError, match=r"step 2: .*discriminator.* is not finite"):
        run(tmp_path / "run", objective=objective)
    after = objective.adversary.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if not v.isnan().any())


# --------------------------------------------------------------------------------- batches, processes, image sizes


@pytest.mark.parametrize("bottleneck", [FSQ, VQ], ids=["fsq", "vq"])
def test_accumulation_equals_one_large_batch_with_everything_on(tmp_path, bottleneck):
    states, histories = [], []
    for parts in (1, 4):
        config = replace(CONFIG, accumulate=parts, learning_rate=1e-4, steps=5)
        objective = objective_of(bottleneck=bottleneck)
        _, history = run(tmp_path / str(parts), config, objective)
        states.append(weights(tmp_path / str(parts)))
        histories.append(history)
    for one, other in zip(*histories, strict=True):
        for name in set(one) - {"seconds", "images_per_second", "discriminator_largest"}:
            if not name.startswith(("codebook", "usage", "perplexity")):  # of a micro-batch, no mean over images
                assert other[name] == pytest.approx(one[name], rel=2e-4, abs=1e-6), name
    for name, value in states[0].items():
        if name.endswith("count_K"):  # a moving average over micro-batches
            continue
        atol = 2e-6 if "optimizer" in name else 5e-5
        torch.testing.assert_close(states[1][name], value, atol=atol, rtol=1e-3, msg=name)


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_objective as t
t.run(Path(sys.argv[2]), t.PAIRED[0], t.objective_of(t.PAIRED[1], **t.PAIRED[2]))
"""
PAIRED = (
    replace(CONFIG, learning_rate=1e-4, steps=5),
    replace(FULL, text=0.2),
    {"semantic": SemanticConfig(dim=8, text=NGramTextConfig(width=8, depth=1, heads=2))},
)


def test_two_processes_equal_one_with_everything_on(tmp_path, run_two_processes):
    run_two_processes(TWO_PROCESSES, Path(__file__).parent, tmp_path / "two")
    _, one = run(tmp_path / "one", PAIRED[0], objective_of(PAIRED[1], **PAIRED[2]))
    two = [json.loads(line) for line in (tmp_path / "two" / "history.jsonl").read_text().splitlines()]
    for row, other in zip(one, two, strict=True):
        for name in ("loss", "text", "alignment", "perceptual", "discriminator", "alignment_weight"):
            if name in row:
                assert other[name] == pytest.approx(row[name], rel=2e-4, abs=1e-6), name
    states = [weights(tmp_path / name) for name in ("one", "two")]
    for name, value in states[0].items():
        if name.startswith("ema.shadow") or name == "adversary.averages":
            torch.testing.assert_close(states[1][name], value, atol=5e-5, rtol=1e-3, msg=name)


def test_terms_do_not_depend_on_the_size_of_the_image():
    """Four copies of an image side by side have its loss where every position is judged for itself."""
    net = replace(NET, norm="rms", downsample="average")
    objective = objective_of(replace(FULL, adversarial=None, alignment=None), net=net).eval()
    for module in objective.autoencoder.modules():  # and so that no position sees past the edge
        if isinstance(module, nn.Conv2d):
            module.padding_mode, module._reversed_padding_repeated_twice = (
                "circular",
                [p for p in module.padding for _ in "ab"][::-1],
            )
    image = Captioned().batch(draws_for(13, 0, 0, 2)).image_BCHW
    small, large = (objective(x).terms for x in (image, image.repeat(1, 1, 2, 2)))
    for name in ("l1", "l2", "perceptual"):
        assert large[name].item() == pytest.approx(small[name].item(), rel=0.05), name


# ------------------------------------------------------------------------------------------------ adaptive weights


def test_adaptive_weights_make_gradients_equally_long(tmp_path):
    config = replace(CONFIG, steps=4, batch_size=13, learning_rate=1e-9, schedule="constant", warmup=0)
    still = replace(FULL, adversarial=replace(ADVERSARIAL, learning_rate=1e-9))
    objective, history = run(tmp_path / "run", config, objective_of(still))
    objective.train()
    objective.begin_step(4)
    layers = {"adversarial": objective.autoencoder.last_layer, "alignment": objective.autoencoder.last_encoder_layer}
    terms = objective(Captioned().batch(draws_for(13, 0, 0, 13))).terms
    pixels = terms["l1"] + terms["l2"] + terms["perceptual"]
    for name, layer in layers.items():
        reference, gradient = (torch.autograd.grad(t, layer, retain_graph=True)[0] for t in (pixels, terms[name]))
        assert float(gradient.norm() / reference.norm()) == pytest.approx(getattr(still, name).weight, rel=0.01), name
    assert history[-1]["alignment_weight"] > 0


def test_an_adaptive_weight_is_finite_where_a_gradient_vanishes():
    balance = Balance(100.0)
    balance.add(torch.ones(3), torch.zeros(3))
    balance.update(lambda x: x)
    assert float(balance.weight) <= 100  # and so no NaN
    balance.add(torch.ones(3), torch.full((3,), 1e-12))
    balance.update(lambda x: x)
    assert float(balance.weight) == 100.0
    balance.update(lambda x: x)
    assert float(balance.weight) == 100.0


# ------------------------------------------------------------------------------------- precision, freezing, averages


@pytest.mark.parametrize("bottleneck", [FSQ, VQ, {"kind": "bsq", "dim": 6}], ids=["fsq", "vq", "bsq"])
def test_the_bottleneck_computes_in_float32_under_autocast(bottleneck):
    objective = objective_of(replace(FULL, adversarial=None, alignment=None), bottleneck).eval()
    seen = {}
    objective.autoencoder.bottleneck.register_forward_hook(lambda _, __, out: seen.update(out=out))
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = objective.autoencoder.features(Captioned().batch([]).image_BCHW.new_zeros(1, 3, 32, 32))
        half = objective.autoencoder.bottleneck(features)
    full = objective.autoencoder.bottleneck(features.float())
    assert torch.equal(half.codes_BNS, full.codes_BNS)
    assert half.loss.dtype == torch.float32


def test_frozen_parts_keep_weights_codebooks_and_tokens(tmp_path):
    vq = {"kind": "vq", "size": 32, "dim": 3}  # its codebook is a buffer that follows in training mode
    config = replace(FULL, alignment=None)
    objective = objective_of(config, vq, frozen=("encoder",))
    image = Captioned().batch(draws_for(13, 0, 0, 1)).image_BCHW
    model = objective.autoencoder
    model.eval()
    tokens = model.encode(image).data
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run(tmp_path / "run", objective=objective)
    model.eval()
    moved = {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"decoder", "post_quant_conv"}
    assert torch.equal(model.encode(image).data, tokens)


def test_without_freezing_the_same_codebook_moves(tmp_path):
    objective = objective_of(replace(FULL, alignment=None), {"kind": "vq", "size": 32, "dim": 3})
    before = {k: v.clone() for k, v in objective.autoencoder.bottleneck.state_dict().items()}
    run(tmp_path / "run", objective=objective)
    after = objective.autoencoder.bottleneck.state_dict()
    assert any(not torch.equal(v, after[k]) for k, v in before.items())


def test_the_averaged_weights_are_what_a_run_returns(tmp_path):
    objective, _ = run(tmp_path / "run")
    state = weights(tmp_path / "run")
    for name, value in objective.state_dict().items():
        assert torch.equal(state[f"ema.shadow.{name}"], value), name
    assert any(not torch.equal(state[f"model.{n}"], v) for n, v in objective.state_dict().items())


# --------------------------------------------------------------------------------------------------------- bad input


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no semantic head"):
        objective_of(replace(FULL, text=1))
    head = SemanticConfig(dim=8)
    with pytest.raises(ValueError, match="no text encoder"):
        objective_of(replace(FULL, text=1), semantic=head)
    with pytest.raises(ValueError, match=r"adversarial: needs a pixel term"):
        ObjectiveConfig(l1=0, adversarial=ADVERSARIAL, text=1)
    with pytest.raises(ValueError, match="all 0"):
        ObjectiveConfig(l1=0)
    with pytest.raises(ValueError, match="only flow decoders"):
        objective_of(ObjectiveConfig(l1=0, velocity=1))
    with pytest.raises(ValueError, match=r"freeze=\['decodr'\]: 'decodr'.*encoder, decoder,"):
        objective_of(frozen=("decodr",))
    with pytest.raises(ValueError, match="nothing is left to train"):
        objective_of(frozen=("encoder", "decoder"))


def test_images_without_captions_are_refused():
    objective = objective_of(replace(PAIRED[1], adversarial=None), **PAIRED[2])
    with pytest.raises(ValueError, match=r"text=0\.2: the images have no captions"):
        objective(torch.zeros(2, 3, 32, 32))
