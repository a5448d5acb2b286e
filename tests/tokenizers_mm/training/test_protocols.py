"""Objectives and discriminators are plain modules: what they need is said by name, before anything is written."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tokenizers_mm.data.sources import ImageArrays
from tokenizers_mm.losses.terms import Losses
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.loop import train
from tokenizers_mm.training.protocols import Objective

CONFIG = TrainConfig(steps=3, batch_size=4, accumulate=2, warmup=0, log_every=1, tracker="none", schedule="constant")
SOURCE = ImageArrays(np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8))


class Judge(nn.Module):
    """A discriminator that inherits nothing: the mean of real images is high, that of reconstructions low."""

    learning_rate, betas, clip = 1e-2, (0.0, 0.9), 1.0

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.zeros(3)), []

    def forward(self, real_BCHW, fake_BCHW):
        self.calls.append("forward")
        assert not fake_BCHW.requires_grad
        real, fake = ((image.mean((0, 2, 3)) * self.weight).sum() for image in (real_BCHW, fake_BCHW))
        return Losses({"judge": fake - real}, {"gap": (real - fake).detach()})

    def begin_step(self, step):
        self.calls.append(step)

    def divergence(self, stats):
        self.calls.append("divergence")
        return "the gap is wide" if stats["gap"] > 100 else None

    def end_step(self, stats):
        self.calls.append(("end", float(stats["gap"])))


class Plain(nn.Module):
    """An objective that inherits nothing of ours; its discriminator rests in the first step."""

    def __init__(self, judge=None):
        super().__init__()
        self.weight, self.judge, self.seen, self.number = nn.Parameter(torch.ones(3)), (judge,), [], 0

    @property
    def adversary(self):
        return self.judge[0]

    def begin_step(self, step):
        self.number = step

    def end_step(self, mean):
        self.seen.append(float(mean(torch.tensor(float(self.number)))))

    def forward(self, image_BCHW):
        recon_BCHW = image_BCHW * self.weight[:, None, None] * 0.5
        pair = (image_BCHW, recon_BCHW.detach()) if self.number else None
        return Losses({"l2": (recon_BCHW - image_BCHW).square().mean()}, {}, pair)


def test_plain_modules_train(tmp_path):
    objective = Plain(Judge())
    before = objective.weight.detach().clone()
    history = train(objective, SOURCE, CONFIG, tmp_path / "run")
    assert not torch.equal(objective.weight, before)
    assert objective.seen == [0, 1, 2]
    assert ["judge" in row for row in history] == [False, True, True]
    judge = objective.adversary
    assert bool(judge.weight.any())
    ends = [("end", pytest.approx(row["gap"])) for row in history[1:]]
    passes = ["forward", "forward", "divergence"]
    assert judge.calls == [0, 1, *passes, ends[0], 2, *passes, ends[1]]


def test_what_need_not_be_written_is_inherited(tmp_path):
    class Short(nn.Module, Objective):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, image_BCHW):
            return Losses({"l1": (image_BCHW * self.weight[:, None, None]).abs().mean()}, {})

    assert len(train(Short(), SOURCE, CONFIG, tmp_path / "run")) == 3


@pytest.mark.parametrize("member", ["adversary", "begin_step", "end_step", "forward"])
def test_an_objective_that_lacks_a_member_is_refused_by_its_name(tmp_path, member):
    every = {**vars(Plain), "adversary": None, "__init__": nn.Module.__init__}
    lacking = type("Lacking", (nn.Module,), {name: value for name, value in every.items() if name != member})()
    with pytest.raises(ValueError, match=rf"objective is a Lacking without {member}: .*training\.Objective"):
        train(lacking, SOURCE, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("member", ["learning_rate", "clip", "divergence", "end_step", "forward"])
def test_a_discriminator_that_lacks_a_member_is_refused_by_its_name(tmp_path, member):
    every = {**vars(Judge), "__init__": nn.Module.__init__}
    lacking = type("Lacking", (nn.Module,), {name: value for name, value in every.items() if name != member})()
    with pytest.raises(ValueError, match=rf"adversary is a Lacking without {member}: .*training\.Player"):
        train(Plain(lacking), SOURCE, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_protocol_alone_is_no_forward_pass(tmp_path):
    class Unwritten(Objective, nn.Module):
        """Inherits the protocol's forward, which gives no losses."""

    with pytest.raises(ValueError, match="Unwritten without forward"):
        train(Unwritten(), SOURCE, CONFIG, tmp_path / "run")
    with pytest.raises(ValueError, match="objective is a object: expected"):
        train(object(), SOURCE, CONFIG, tmp_path / "run")


def test_a_discriminator_inside_the_objective_is_refused(tmp_path):
    """It would be trained twice, once to be fooled."""

    class Inside(Plain):
        def __init__(self):
            super().__init__(Judge())
            self.inner = self.judge[0]

    with pytest.raises(ValueError, match=r"adversary: its parameters are .* `inner\.weight`"):
        train(Inside(), SOURCE, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_discriminator_that_diverges_ends_the_run_in_its_own_words(tmp_path):
    judge = Judge()
    judge.divergence = lambda stats: "the gap is wide"
    with pytest.raises(ValueError, match=r"2:.*wide\. Last.*checkpoint: \S*step_0000001"):
        train(Plain(judge), SOURCE, replace(CONFIG, checkpoint_every=1), tmp_path / "run")
    assert not bool(judge.weight.any())  # no update was made
