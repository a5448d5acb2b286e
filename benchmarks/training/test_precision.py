"""One optimiser step of the packaged shapes models in bfloat16 autocast against float32."""

import copy

import pytest
import torch
from torch import nn

import backbones
from recipes.schema import load_recipe
from tokenizers_mm.api import Batch, Tokens
from tokenizers_mm.data import ImageArrays, draws_for
from tokenizers_mm.data.sets import Shapes
from tokenizers_mm.models import build_autoencoder
from tokenizers_mm.training.objective import TokenizerObjective


class Step(nn.Module):
    """A model with its batch; calling it makes one step and returns the loss before it."""

    def __init__(self, model, loss, precision):
        super().__init__()
        self.model, self.loss, self.precision = model, loss, precision
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def forward(self):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = sum(self.loss(self.model).values())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def tokenizer_and_loss():
    recipe = load_recipe("shapes_fsq")
    images = ImageArrays(Shapes(recipe.train.batch_size, 0).images)
    batch = images.batch(draws_for(len(images), 0, 0, len(images)))
    return TokenizerObjective(build_autoencoder(recipe.model), recipe.objective), lambda m: m(batch).terms


def generator_and_loss():
    recipe, spec = load_recipe("shapes_ar"), build_autoencoder(load_recipe("shapes_fsq").model).spec
    codes = torch.randint(spec.codes[0], (recipe.train.batch_size, spec.length, 1))
    batch = Batch(Tokens(codes_BNS=codes, grid=spec.grid), Shapes(recipe.train.batch_size, 0).captions)
    options = {name: value for name, value in recipe.model.items() if name != "kind"} | {"drop_condition": 0.0}
    return backbones.build("autoregressive", options, spec), lambda m: m.loss(batch)


@pytest.mark.parametrize(
    ("name", "make"), [("shapes_fsq", tokenizer_and_loss), ("shapes_ar", generator_and_loss)], ids=["fsq", "ar"]
)
def test_step(compare, name, make):
    model, loss = make()
    half, full = (Step(copy.deepcopy(model), loss, precision) for precision in ("bf16", "no"))
    losses = torch.tensor([[float(half()), float(full())] for _ in range(5)])
    torch.testing.assert_close(losses[:, 0], losses[:, 1], rtol=0.02, atol=0)
    compare(f"training step of {name}", {"bfloat16": half, "float32": full}, rounds=9)
