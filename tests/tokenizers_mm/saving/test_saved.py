"""A class that none of ours knows is saved, described, told from others and read again by what `Saved` asks of it."""

import json

import pytest
import torch
from torch import nn

from tokenizers_mm import fingerprint, load, save
from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.models import KINDS
from tokenizers_mm.saving import CardFacts, CardSource, HubMixin, check_saved, fingerprint_of, folder, model_card
from tokenizers_mm.weights import CheckpointError, Provenance, load_strict


class Mean(nn.Module, HubMixin):
    """The mean colour of square patches, times a learned gain."""

    kind = "mean"

    def __init__(self, patch):
        super().__init__()
        self.patch, self.gain = patch, nn.Parameter(torch.ones(3))
        self.spec = TokenSpec(image_size=(8, 8), grid=(8 // patch, 8 // patch), dim=3)

    def encode(self, image_BCHW):
        map_BDhw = nn.functional.avg_pool2d(image_BCHW, self.patch) * self.gain[:, None, None]
        return Tokens(latents_BND=map_BDhw.flatten(2).transpose(1, 2).detach(), grid=tuple(map_BDhw.shape[2:]))

    def embed(self, tokens):
        return tokens.data

    def decode(self, tokens):
        map_BDhw = tokens.data.transpose(1, 2).unflatten(2, tokens.grid)
        return nn.functional.interpolate(map_BDhw, scale_factor=float(self.patch))

    def options(self):
        return {"patch": self.patch}

    def card(self):
        return CardFacts(
            title="Mean colours",
            tag="mean",
            facts={"patch": str(self.patch)},
            sources=(CardSource(provenance=self.provenance, made="Made for a test."),),
        )

    @classmethod
    def rebuild(cls, options, state, *, where, weights):
        model = cls(options["patch"])
        load_strict(model, state, weights, assign=True)
        return model.eval()


def mean(patch=4, gain=2.0):
    model = Mean(patch)
    model.gain.data.fill_(gain)
    return model


def test_it_is_saved_and_reads_itself(tmp_path):
    model = mean()
    model.provenance = Provenance("means", "somebody/means", None, "MIT", "MIT")
    model.save_pretrained(tmp_path / "mean")
    config = json.loads((tmp_path / "mean" / "config.json").read_text())
    assert (config["kind"], config["model"], config["origin"]["family"]) == ("mean", {"patch": 4}, "means")
    again = Mean.from_pretrained(tmp_path / "mean")
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(again.encode(image).data, model.encode(image).data)
    assert again.provenance == model.provenance
    assert fingerprint(again) == fingerprint(model)
    assert isinstance(folder.load(tmp_path / "mean", {**KINDS, "mean": Mean}), Mean)
    save(mean(2), tmp_path / "mean")  # replaced by another of its kind
    assert Mean.from_pretrained(tmp_path / "mean").patch == 2


def test_what_recognises_does_not_know_it(tmp_path):
    save(mean(), tmp_path / "mean")
    with pytest.raises(CheckpointError, match=r"config\.json: expected.*'autoencoder'.*found 'mean'"):
        load(tmp_path / "mean")


def test_its_fingerprint_is_that_of_kind_options_and_weights():
    assert fingerprint_of(mean()) == fingerprint(mean())
    assert len({fingerprint(mean()), fingerprint(mean(2)), fingerprint(mean(gain=3.0))}) == 3
    renamed = type("Other", (Mean,), {"kind": "other"})(4)
    renamed.gain.data.fill_(2.0)
    assert fingerprint(renamed) != fingerprint(mean())


def test_its_card_is_of_its_own_facts():
    card = model_card(mean())
    for line in ("# Mean colours", "| patch | 4 |", "- mean", "| grid | 2x2 (4 positions, layout: raster) |"):
        assert line in card
    assert "Made for a test. No licence of the weights is stated." in card


def test_who_lacks_a_member_is_refused():
    forwards = type("Forwards", (), {"__getattr__": lambda self, name: getattr(mean(), name)})()
    for value in (forwards, Mean, 3, nn.Linear(2, 2)):
        with pytest.raises(CheckpointError, match=rf"^{type(value).__name__}: cannot be saved, its class lacks"):
            check_saved(value)
        with pytest.raises(CheckpointError, match=r"cannot be saved"):
            fingerprint(value)
    assert check_saved(mean()).kind == "mean"
