"""A step waits for the device once for each of its updates, however many micro-batches it has."""

import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import backbones
import tokenizers_mm
from recipes.programs.train import _GeneratorObjective
from tokenizers_mm import AutoencoderConfig, Tokens, build_autoencoder
from tokenizers_mm.data.sources import ImageArrays
from tokenizers_mm.losses.alignment import Alignment, AlignmentConfig
from tokenizers_mm.losses.discriminator_training import AdversarialConfig, Adversary
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.nets.discriminators import PatchConfig, build_discriminator
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.store.dataset import TokenDataset
from tokenizers_mm.towers import TowerConfig
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.objective import ObjectiveConfig, TokenizerObjective
from tokenizers_mm.training.run import TrainingRun

ROOT = Path(tokenizers_mm.__file__).parents[1]
PACKAGES = ("tokenizers_mm", "quantizers", "backbones", "recipes")
IMAGES = ImageArrays(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
STORES = Path(__file__).parents[2] / "saved" / "stores"
WAITING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}
CONFIG = TrainConfig(steps=9, batch_size=4, warmup=0, log_every=100, tracker="none")
ADVERSARIAL = AdversarialConfig(
    start=0, lecam=0.1, r1=1.0, r1_every=2, consistency=0.1, augment=("color",), discriminator=PatchConfig(channels=8)
)


class Waits(TorchDispatchMode):
    """Counts where Python asks a tensor for its value: on a GPU each of these waits for all that was begun."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count()
        return function(*args, **(kwargs or {}))

    def count(self):
        files = [Path(frame.filename) for frame in traceback.extract_stack()]
        ours = [file.relative_to(ROOT) for file in files if file.is_relative_to(ROOT)]
        self.places[next(str(file) for file in reversed(ours) if file.parts[0] in PACKAGES)] += 1


class Lists(TorchFunctionMode):
    """Those that read a tensor's memory without an operation of its own."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in WAITING:
            self.waits.count()
        return function(*args, **(kwargs or {}))


@contextmanager
def counted():
    waits = Waits()
    with waits, Lists(waits):
        yield waits.places


class Unread:
    """A store whose tokens nobody has checked."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def batch(self, draws):
        batch = self.store.batch(draws)
        tokens = Tokens(codes_BNS=batch.tokens.codes_BNS, latents_BND=batch.tokens.latents_BND, grid=batch.tokens.grid)
        return replace(batch, tokens=tokens)


class Colours(nn.Module):
    """A teacher that knows mean colours."""

    def forward(self, image_BCHW):
        patch_BND = nn.functional.avg_pool2d(image_BCHW, 8).flatten(2).mT
        return Semantics(patch_BND, patch_BND.mean(1), (4, 4))


def objective_of(adversarial=None, asks=False):
    net = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2, middle_attention=False)
    model = build_autoencoder(AutoencoderConfig(image_size=(32, 32), bottleneck={"kind": "fsq"}, net=net))
    alignment = AlignmentConfig(teacher=TowerConfig(name="lite0"), adaptive=True)
    adversary = None if adversarial is None else Adversary(build_discriminator(adversarial.discriminator), adversarial)
    objective = TokenizerObjective(
        model,
        ObjectiveConfig(l2=1, alignment=alignment, adversarial=adversarial),
        adversary=adversary,
        alignment=Alignment(alignment, model.bottleneck.dim, 3),
        teachers={"alignment": Colours()},
    )
    if asks:
        objective.balances["alignment"].register_buffer("asked", torch.ones(()))
        weigh = objective._weight
        objective._weight = lambda name: weigh(name) * float(objective.balances["alignment"].asked)
    return objective


def waits_of_a_step(folder, objective, source=IMAGES, accumulate=1):
    """Where the third step asks for values, and how often; a quantizer checks its input for itself."""
    run = TrainingRun(objective, source, replace(CONFIG, accumulate=accumulate), folder)
    run.open({}, resume=False)
    stream = run.batches(0)
    for step in range(2):
        run.trainer.step(step, next(stream))
    batches = next(stream)
    with counted() as places:
        run.trainer.step(2, batches)
    return {place: number for place, number in places.items() if not place.startswith("quantizers")}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(("adversarial", "updates"), [(None, 1), (ADVERSARIAL, 2)], ids=["plain", "adversarial"])
def test_one_wait_an_update(tmp_path, accumulate, adversarial, updates):
    objective = objective_of(adversarial)
    assert waits_of_a_step(tmp_path / "run", objective, accumulate=accumulate) == {
        "tokenizers_mm/training/step.py": updates
    }


@pytest.mark.parametrize(("kind", "store"), [("autoregressive", "conv_fsq"), ("flow", "conv_gaussian")])
def test_one_wait_a_step_of_a_generator(tmp_path, kind, store):
    tokens = TokenDataset(STORES / store)
    options = {"width": 16, "depth": 1, "heads": 2}
    objective = _GeneratorObjective(backbones.build(kind, options, tokens.spec, tokens.codebook_VD))
    assert waits_of_a_step(tmp_path / "run", objective, tokens) == {"tokenizers_mm/training/step.py": 1}
    found = waits_of_a_step(tmp_path / "unread", objective, Unread(tokens))
    assert found == {"tokenizers_mm/training/step.py": 1, "tokenizers_mm/api.py": 1}


def test_an_objective_that_asks_is_counted(tmp_path):
    found = waits_of_a_step(tmp_path / "run", objective_of(asks=True), accumulate=4)
    assert found.pop("tokenizers_mm/training/objective/objective.py") >= 4
    assert found == {"tokenizers_mm/training/step.py": 1}
