"""Going on from a tokenizer that exists: frozen parts, discriminators of earlier runs, halves that are recipes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recipes.programs.train import ADVERSARY_FILE, train_recipe, train_tokenizer
from recipes.schema.data import ShapeImages
from recipes.schema.recipe import FusedRecipe, TokenizerRecipe, load_recipe
from tokenizers_mm import Fused, build_autoencoder, load, save
from tokenizers_mm.config import ConfigError
from tokenizers_mm.data.annotated import LabelledImages
from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.losses.discriminator_training import AdversarialConfig
from tokenizers_mm.models.semantic_head import SemanticConfig
from tokenizers_mm.nets.discriminators import PatchConfig
from tokenizers_mm.towers.text import NGramTextConfig
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.objective import ObjectiveConfig

TRAIN = TrainConfig(steps=3, batch_size=4, log_every=1, checkpoint_every=3, tracker="none")
ADVERSARIAL = AdversarialConfig(start=1, discriminator=PatchConfig(channels=8, layers=1))
OBJECTIVE = ObjectiveConfig(l1=1, adversarial=ADVERSARIAL)


def recipe_of(name="shapes_fsq", **changes):
    recipe = load_recipe(name, ["data.count=40", "model.net.channels=16", "model.net.groups=4"])
    return replace(recipe, **({"train": TRAIN, "objective": OBJECTIVE} | changes))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    train_recipe(recipe_of(), folder)
    return folder


def test_only_a_tokenizer_of_one_size_refuses_images_of_another(first, tmp_path):
    images = ShapeImages(count=8, image_size=64)
    save(build_autoencoder(load_recipe("titok").model), tmp_path / "titok")
    changes = {"model": None, "data": images, "train": replace(TRAIN, steps=1), "objective": ObjectiveConfig(l1=1)}
    expected = r"data\.image_size=64, image size of \S*titok=\[32, 32\]: .* say --set data\.image_size=32$"
    with pytest.raises(ValueError, match=expected):
        train_tokenizer(recipe_of(**changes, start=str(tmp_path / "titok")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_tokenizer(recipe_of(**changes, start=str(first)), tmp_path / "raster")


def test_a_frozen_encoder_keeps_every_token(first, tmp_path):
    before = load(first / "tokenizer")
    batch = torch.rand(4, 3, 32, 32) * 2 - 1
    after = train_tokenizer(recipe_of(model=None, start=str(first), freeze=("encoder",)), tmp_path / "run").eval()
    assert torch.equal(before.encode(batch).data, after.encode(batch).data)
    assert not torch.equal(before.decode(before.encode(batch)), after.decode(after.encode(batch)))
    free = train_tokenizer(recipe_of(model=None, start=str(first)), tmp_path / "free").eval()
    assert not torch.equal(before.features(batch)[0], free.features(batch)[0])


def test_an_object_of_ours_is_trained_and_saved_and_no_other(plain, tmp_path):
    train_recipe(recipe_of(model=None, start="plain_tokenizers:autoencoder", freeze=("encoder",)), tmp_path / "run")
    assert load(tmp_path / "run" / "tokenizer").spec == plain.autoencoder().spec
    with pytest.raises(ValueError, match="start=plain_tokenizers:Pool: a Pool has nothing to train"):
        train_recipe(recipe_of(model=None, start="plain_tokenizers:Pool"), tmp_path / "other")
    half = recipe_of(objective=ObjectiveConfig(l1=1))
    train_recipe(
        FusedRecipe(semantic="plain_tokenizers:autoencoder", perceptual=half, how="sequence"), tmp_path / "fused"
    )
    assert load(tmp_path / "fused" / "tokenizer").semantic.spec == plain.autoencoder().spec
    with pytest.raises(ValueError, match=r"Pool: cannot.*saved,"):
        train_recipe(FusedRecipe(semantic=half, perceptual="plain_tokenizers:Pool"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()  # before anything was trained


def test_a_run_goes_on_with_the_discriminator_that_is_there(first, tmp_path):
    trained = load_file(first / ADVERSARY_FILE)
    still = replace(OBJECTIVE, adversarial=replace(ADVERSARIAL, start=100))
    train_tokenizer(recipe_of(model=None, start=str(first), objective=still), tmp_path / "run")
    kept = load_file(tmp_path / "run" / ADVERSARY_FILE)
    assert all(torch.equal(trained[name], kept[name]) for name in trained)
    train_tokenizer(recipe_of(objective=still), tmp_path / "fresh")
    fresh = load_file(tmp_path / "fresh" / ADVERSARY_FILE)
    assert any(not torch.equal(trained[name], fresh[name]) for name in trained)


def test_another_discriminator_is_refused(first, tmp_path):
    wider = replace(ADVERSARIAL, discriminator=PatchConfig(channels=16, layers=1))
    recipe = recipe_of(model=None, start=str(first), objective=replace(OBJECTIVE, adversarial=wider))
    with pytest.raises(ValueError, match=r"adversary\.safetensors: another discriminator"):
        train_tokenizer(recipe, tmp_path / "run")


def test_a_new_semantic_head_learns_on_codes_that_stay(first, tmp_path):
    before, batch = load(first / "tokenizer"), torch.rand(4, 3, 32, 32) * 2 - 1
    head = SemanticConfig(dim=16, depth=1, heads=2, text=NGramTextConfig(width=16, depth=1, heads=2))
    recipe = recipe_of(
        model=None,
        start=str(first),
        semantic=head,
        freeze=("encoder", "decoder"),
        objective=ObjectiveConfig(l1=0, text=1),
    )
    trained = train_tokenizer(recipe, tmp_path / "run", source=captioned(8))
    after = load(tmp_path / "run" / "tokenizer").eval()
    assert before.semantic is None
    assert after.config.semantic == head
    tokens = before.encode(batch)
    assert torch.equal(tokens.data, after.encode(batch).data)
    assert torch.equal(before.decode(tokens), after.decode(tokens))
    assert torch.equal(after.semantics(batch).pooled_BD, trained.eval().semantics(batch).pooled_BD)
    assert after.text_features(["red square"]).shape == (1, 16)
    longer = train_tokenizer(
        replace(recipe, train=replace(TRAIN, steps=4)), tmp_path / "longer", source=captioned(8)
    ).eval()
    assert not torch.equal(longer.semantics(batch).pooled_BD, after.semantics(batch).pooled_BD)


def captioned(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    names = tuple(f"picture {number}" for number in range(count))
    return LabelledImages(
        Labelled(images_NHWC=images, captions=names, labels_N=np.full(count, -1), classes=(), keys=names)
    )


def test_halves_may_be_recipes_or_tokenizers_that_exist(first, tmp_path):
    half = recipe_of(objective=ObjectiveConfig(l1=1))
    train_recipe(FusedRecipe(semantic=half, perceptual=str(first / "tokenizer"), how="sequence"), tmp_path / "run")
    fused = load(tmp_path / "run" / "tokenizer")
    assert isinstance(fused, Fused)
    assert (tmp_path / "run" / "semantic" / "tokenizer" / "config.json").exists()
    batch = torch.rand(2, 3, 32, 32) * 2 - 1
    _, perceptual = fused.halves(fused.encode(batch))
    assert torch.equal(perceptual.data, load(first / "tokenizer").encode(batch).data)


TWO_PROCESSES = """
import sys
from pathlib import Path
from recipes import load_recipe, train_recipe

train_recipe(load_recipe("fused_channel", sys.argv[2:]), Path(sys.argv[1]))
"""


def test_two_processes_train_both_halves_one_of_which_draws_nothing(tmp_path, run_two_processes):
    assignments = [
        f"{half}.{assignment}"
        for half in ("semantic", "perceptual")
        for assignment in ("train.steps=2", "train.tracker=none", "data={kind: shapes, count: 64}")
    ]
    run_two_processes(TWO_PROCESSES, tmp_path / "two", *assignments)
    assert isinstance(load(tmp_path / "two"), Fused)
    assert not load_recipe("fused_channel").semantic.objective.draws


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["start=runs/x"], "model, start: give one of them"),
        (["model=null"], "model, start: give one of them"),
        (["freeze=[encodr]"], r"freeze.*encodr|Input should be"),
        (["cache_features=true"], "the objective has no teacher"),
        (["semantic={dim: 8}"], "a new head for a tokenizer to go on from"),
        (["objective.text=1", "train.accumulate=2"], "micro-batches do not see each other"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_read(assignments, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("shapes_fsq", assignments)


def test_every_full_preset_parses():
    from recipes.schema.files import packaged_recipes

    names = [name for name in packaged_recipes() if name.startswith("imagenet/")]
    kinds = {name: type(load_recipe(name)) for name in names}
    assert len(names) == 17
    assert {name for name, kind in kinds.items() if kind is FusedRecipe} == {
        "imagenet/fused_channel",
        "imagenet/fused_sequence",
    }
    assert all(issubclass(kind, TokenizerRecipe | FusedRecipe) for kind in kinds.values())
