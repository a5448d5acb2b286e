"""A whole training step with perceptual and adversarial terms: our trainer against the step as public code writes it.

"vqgan" is VQGAN's (https://arxiv.org/abs/2012.09841) own training: one pass of the autoencoder for each of the two
optimisers, two gradients at the last layer for the adaptive weight, and the backward pass over all of it once more.
"one pass" is what trainers descended from it do: the autoencoder runs once, but the discriminator's weight gradients
of the tokenizer's term are computed and thrown away. Both are given our EMA, our clipping and the same networks.
"""

import copy
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tokenizers_mm.data import ImageArrays
from tokenizers_mm.losses import AdversarialConfig, Adversary, feature_distance
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.models import AutoencoderConfig, build_autoencoder
from tokenizers_mm.nets import ConvConfig, PatchConfig, build_discriminator
from tokenizers_mm.towers import lite0_network
from tokenizers_mm.training import EMA, TrainConfig
from tokenizers_mm.training.objective import ObjectiveConfig, TokenizerObjective, objective
from tokenizers_mm.training.run import TrainingRun

AIM = 1.3
CLIP, EMA_DECAY, WEIGHT = 1.0, 0.999, 0.5
# Pixels, images, multipliers of the autoencoder's 64 channels, channels of the discriminator.
SIZES = {"64 px": (64, 8, (1, 2), 32), "128 px": (128, 4, (1, 2, 2), 64)}


class Clock:
    """Seconds spent in each part of a step; a part inside another counts for itself alone."""

    def __init__(self):
        self.seconds, self.within = Counter(), []

    @contextmanager
    def __call__(self, part):
        began = time.perf_counter()
        self.within.append(0.0)
        yield
        took = time.perf_counter() - began
        self.seconds[part] += took - self.within.pop()
        if self.within:
            self.within[-1] += took


class Naive:
    """The step written down plainly. `passes` of the autoencoder: 2 for "vqgan", 1 for "one pass"."""

    def __init__(self, autoencoder, adversary, passes):
        self.autoencoder, self.discriminator, self.passes = autoencoder, adversary.discriminator, passes
        self.lite0, self.clock = lite0_network()[0].eval().requires_grad_(False), Clock()
        mean, std = (torch.tensor(self.lite0.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
        self.mean, self.std = mean, std
        self.ema = EMA(autoencoder, EMA_DECAY)
        self.optimizers = [
            torch.optim.AdamW(module.parameters(), lr=1e-12, betas=betas, weight_decay=0.0)
            for module, betas in ((autoencoder, (0.9, 0.99)), (self.discriminator, (0.5, 0.9)))
        ]

    def perceptual(self, image, target):
        features = [
            self.lite0.forward_intermediates(((x + 1) / 2 - self.mean) / self.std, intermediates_only=True)
            for x in (image, target)
        ]
        return feature_distance(*features).mean()

    def __call__(self, image):
        clock, (optimizer, its_optimizer) = self.clock, self.optimizers
        if self.passes == 2:  # Lightning freezes the other player
            self.discriminator.requires_grad_(False)
        with clock("autoencoder, forward"):
            recon, quantized = self.autoencoder(image)
        with clock("pixels and perceptual, forward"):
            reconstruction = F.l1_loss(recon, image) + self.perceptual(recon, image)
        with clock("tokenizer's adversarial term, forward"):
            adversarial = -self.discriminator(recon)[0].mean()
        with clock("adaptive weight"):
            last = self.autoencoder.last_layer
            grads = [torch.autograd.grad(x, last, retain_graph=True)[0] for x in (reconstruction, adversarial)]
            weight = (grads[0].norm() / (grads[1].norm() + 1e-8)).clamp(0, 1e4).detach()
        with clock("backward of everything"):
            (reconstruction + quantized.loss + WEIGHT * weight * adversarial).backward()
        with clock("optimisers and EMA"):
            torch.nn.utils.clip_grad_norm_(self.autoencoder.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            self.ema.update(self.autoencoder)
            its_optimizer.zero_grad()
        if self.passes == 2:
            self.discriminator.requires_grad_(True)
            with clock("autoencoder, forward"), torch.no_grad():
                recon, _ = self.autoencoder(image)
        with clock("discriminator's step"):
            real, fake = self.discriminator(image)[0], self.discriminator(recon.detach())[0]
            loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), CLIP)
            its_optimizer.step()
            its_optimizer.zero_grad()
        return weight


class Ours:
    """One step of the training loop. Its adaptive weight is that of the step before."""

    def __init__(self, autoencoder, adversary, folder):
        config = ObjectiveConfig(l1=1.0, perceptual=1.0, adversarial=adversary.config)
        self.objective = TokenizerObjective(autoencoder, config, perceptual=perceptual("lite0"), adversary=adversary)
        options = {"learning_rate": 1e-12, "warmup": 0, "schedule": "constant", "betas": (0.9, 0.99), "clip": CLIP}
        train = TrainConfig(steps=10**6, batch_size=1, ema=EMA_DECAY, tracker="none", **options)
        # The loop's own step, without what happens between steps: data, logging, checkpoints.
        self.run = TrainingRun(self.objective, ImageArrays(np.zeros((1, 8, 8, 3), np.uint8)), train, folder)
        self.run.open({}, resume=False)
        self.steps, self.clock = 0, Clock()

    def __call__(self, image):
        self.run.trainer.step(self.steps, [image])
        self.steps += 1
        return self.objective.balances["adversarial"].weight.clone()

    def parts(self, image, monkeypatch):
        """Seconds of the parts of one step."""
        clock, whole = Clock(), time.perf_counter()

        def timed(owner, name, part):
            function = getattr(owner, name)

            def wrapped(*args, **kwargs):
                with clock(part):
                    return function(*args, **kwargs)

            monkeypatch.setattr(owner, name, wrapped)

        names = iter(["pixels", "perceptual", "tokenizer's adversarial term"])  # the order in which they are cut
        real_cut = objective.cut

        def cut(*args, **kwargs):
            with clock(f"{next(names)}, forward and backward"):
                return real_cut(*args, **kwargs)

        monkeypatch.setattr(objective, "cut", cut)
        timed(self.objective.autoencoder, "quantized", "autoencoder, forward")
        timed(self.objective.autoencoder, "pixels", "autoencoder, forward")
        timed(self.objective, "_measure", "adaptive weight")
        timed(self.run.trainer, "_step_discriminator", "discriminator's step, forward")
        timed(self.run.accelerator, "backward", "autoencoder and discriminator, backward")
        self(image)
        seconds = clock.seconds
        whole = time.perf_counter() - whole
        monkeypatch.undo()
        rest = whole - sum(seconds.values())
        return {part: round(1e3 * s, 1) for part, s in (seconds | {"rest": rest}).items()}


def steps_of(size, tmp_path):
    pixels, count, multipliers, its_channels = SIZES[size]
    torch.manual_seed(0)
    config = AutoencoderConfig(
        net=ConvConfig(channels=64, multipliers=multipliers, blocks=1, middle_attention=False, patch=2),
        bottleneck={"kind": "fsq", "levels": (8, 5, 5, 5)},
        image_size=(pixels, pixels),
    )
    options = AdversarialConfig(weight=WEIGHT, learning_rate=1e-12, discriminator=PatchConfig(channels=its_channels))
    autoencoder = build_autoencoder(config).train()
    adversary = Adversary(build_discriminator(options.discriminator), options).train()
    image = torch.rand(count, 3, pixels // 8, pixels // 8).sub_(0.5).mul_(2)
    image = F.interpolate(image, scale_factor=8, mode="bicubic").clamp(-1, 1)
    made = {"ours": Ours(*copy.deepcopy((autoencoder, adversary)), tmp_path)}
    made |= {name: Naive(*copy.deepcopy((autoencoder, adversary)), n) for name, n in (("vqgan", 2), ("one pass", 1))}
    return made, image


def gradients(run, module, optimizer, image):
    """Of one step after the first: what the optimiser was given, and the adaptive weight."""
    run(image)
    found = []
    hook = optimizer.register_step_pre_hook(lambda *_: found.extend(p.grad.clone() for p in module.parameters()))
    weight = run(image)
    hook.remove()
    return torch.cat([gradient.flatten() for gradient in found]), weight


@pytest.mark.parametrize("size", SIZES)
def test_step(compare, peak, size, tmp_path, monkeypatch):
    made, image = steps_of(size, tmp_path)
    ours = made["ours"]
    players = list(ours.run.trainer.parts().values())
    for i in (0, 1):
        expected, weight = gradients(made["vqgan"], *naive_player(made["vqgan"], i), image)
        for name in ("ours", "one pass"):
            player = players[i] if name == "ours" else naive_player(made[name], i)
            found, its_weight = gradients(made[name], *player, image)
            torch.testing.assert_close(its_weight, weight, rtol=1e-3, atol=0)
            assert (found - expected).norm() < 0.01 * expected.norm(), name
    memory = {name: peak(lambda run=run: run(image)) for name, run in made.items()}
    parts = {name: naive_parts(made[name], image) for name in ("vqgan", "one pass")}
    compare(
        f"adversarial training step, {size}",
        {name: (lambda run=run: run(image)) for name, run in made.items()},
        rounds=7,
        aims={"vqgan": AIM, "one pass": AIM},
        images=len(image),
        peak_mib=memory,
        parts_ms={"ours": ours.parts(image, monkeypatch)} | parts,
    )
    assert memory["ours"] <= min(memory["vqgan"], memory["one pass"])


def naive_player(step, index):
    return (step.autoencoder, step.discriminator)[index], step.optimizers[index]


def naive_parts(step, image):
    step.clock.seconds.clear()
    step(image)
    return {part: round(1e3 * seconds, 1) for part, seconds in step.clock.seconds.items()}
