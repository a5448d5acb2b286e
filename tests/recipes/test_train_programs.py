"""The training programs on tiny settings: what they leave behind, that it loads again, and that resuming is exact."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import backbones
from recipes.programs.sample import TOKENIZER_FILE
from recipes.programs.train import train_generator, train_recipe, train_tokenizer, with_features
from recipes.schema.data import FolderImages, PhotoCrops, ShapeImages
from recipes.schema.recipe import GeneratorRecipe, load_recipe
from tokenizers_mm import Tokens, build_autoencoder, fingerprint, load
from tokenizers_mm.data.images import to_tensor
from tokenizers_mm.data.sets.photos import heldout_photos
from tokenizers_mm.data.sets.shapes import Shapes, write_folder
from tokenizers_mm.data.sources import Draw, ImageArrays, draws_for
from tokenizers_mm.data.unreadable import TooManyUnreadable
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.measure.reconstruction import psnr
from tokenizers_mm.store.dataset import TokenDataset
from tokenizers_mm.store.encode import encode_folder
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.objective import ObjectiveConfig, TokenizerObjective
from tokenizers_mm.training.pca_init import pca_initialise

TRAIN = TrainConfig(
    steps=4, batch_size=4, warmup=1, ema=0.5, log_every=1, checkpoint_every=2, picture_every=2, tracker="none"
)
SHAPES = ShapeImages(count=40)


def recipe_of(name="shapes_fsq", data=SHAPES, train=TRAIN, **model):
    recipe = load_recipe(name)
    return replace(recipe, data=data, train=train, model=replace(recipe.model, **{"linear": True, **model}))


def history_of(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


class Stopped(Exception):
    pass


def stopping(batch, after):
    """The method, failing at its call number `after`."""
    calls = iter(range(after))

    def limited(self, items):
        if next(calls, None) is None:
            raise Stopped
        return batch(self, items)

    return limited


# ----------------------------------------------------------------------------------------------------- tokenizers


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images of several sizes and formats."""
    folder = tmp_path_factory.mktemp("pictures")
    photo = heldout_photos()["china"]
    Image.fromarray(photo[:80, :100]).save(folder / "wide.jpg")
    Image.fromarray(photo[100:200, :70]).save(folder / "high.png")
    Image.fromarray(photo[:50, :50]).save(folder / "small.webp")
    return folder


@pytest.mark.parametrize("kind", ["shapes", "photos", "folder"])
def test_a_tokenizer_is_trained_on(kind, tmp_path, pictures):
    data = {"shapes": SHAPES, "photos": PhotoCrops(crop=32), "folder": FolderImages(path=str(pictures), size=32)}[kind]
    result = train_recipe(recipe_of(data=data), tmp_path / "run")
    assert result == tmp_path / "run" / "tokenizer"
    assert [row["step"] for row in history_of(tmp_path / "run")] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["data"]["kind"] == kind
    picture = np.asarray(Image.open(tmp_path / "run" / "pictures" / "step_0000004.png"))
    assert picture.shape == (2 * 32, 8 * 32, 3)  # eight images above, their reconstructions below
    assert not np.array_equal(picture[:32], picture[32:])
    model, image = load(result), data.source().batch(draws_for(3, 0, 0, 2))
    tokens = model.encode(image)
    assert model.decode(tokens).shape == image.shape == (2, 3, 32, 32)


@pytest.mark.filterwarnings("ignore:.*the next image is used:UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_once_from_the_first_batch_to_the_last(tmp_path, workers):
    for number in range(11):
        name = tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 20 * number, np.uint8)).save(name)
    data = FolderImages(path=str(tmp_path / "images"), size=32, captions=True)
    run = recipe_of("shapes_vae", data=data, train=replace(TRAIN, workers=workers))  # a VAE is calibrated at the end
    whole = train_tokenizer(run, tmp_path / "whole")
    (tmp_path / "images" / "b" / "05.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"b/05\.png: header: the file is empty") as caught:
        broken = train_tokenizer(run, tmp_path / "broken")
    assert len([warning for warning in caught if "05.png" in str(warning.message)]) == 1
    (line,) = (tmp_path / "broken" / "unreadable.jsonl").read_text().splitlines()
    assert json.loads(line) == {"key": "b/05.png", "stage": "header", "reason": "the file is empty (0 bytes)"}
    assert not (tmp_path / "whole" / "unreadable.jsonl").exists()
    assert fingerprint(broken) != fingerprint(whole)  # another image was seen in its place
    (tmp_path / "images" / "a" / "02.png").write_bytes(b"")
    with pytest.raises(TooManyUnreadable, match=r"images: 2 of 11 .* raise data\.max_unreadable"):
        train_tokenizer(run, tmp_path / "many")
    assert not (tmp_path / "many").exists()  # the first batch, which training starts from, shows all of them


def test_a_teacher_whose_features_are_kept_passes_over_a_broken_image(tmp_path):
    for number in range(11):
        Image.fromarray(np.full((32, 32, 3), 20 * number, np.uint8)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "05.png").write_bytes(b"")
    data = FolderImages(path=str(tmp_path), size=32, crop="centre", flip=False)
    recipe = replace(load_recipe("siglip_vae"), data=data, cache_features=True)
    with pytest.warns(UserWarning, match=r"05\.png"):
        source = with_features(recipe, data.source())
    with pytest.warns(UserWarning, match=r"05\.png"):
        batch = source.batch([Draw(5, 0), Draw(6, 0), Draw(7, 0)])
    assert torch.equal(batch.features.patch_BND[0], batch.features.patch_BND[1])
    assert not torch.equal(batch.features.patch_BND[1], batch.features.patch_BND[2])


def test_the_saved_tokenizer_is_the_one_that_was_trained(tmp_path):
    trained = train_tokenizer(recipe_of(train=replace(TRAIN, steps=1)), tmp_path / "run")
    assert fingerprint(load(tmp_path / "run" / "tokenizer")) == fingerprint(trained)
    assert not trained.training


def test_runs_may_share_a_source(tmp_path):
    recipe = recipe_of(train=replace(TRAIN, steps=1, picture_every=0))
    train_tokenizer(recipe, tmp_path / "own")
    train_tokenizer(recipe, tmp_path / "shared", source=recipe.data.source())
    train_tokenizer(recipe, tmp_path / "other", source=replace(recipe.data, seed=1).source())
    own, shared, other = (fingerprint(load(tmp_path / name / "tokenizer")) for name in ("own", "shared", "other"))
    assert own == shared != other


def test_training_begins_at_the_linear_code(tmp_path):
    for linear in (True, False):
        train_recipe(recipe_of(train=replace(TRAIN, steps=1), linear=linear), tmp_path / str(linear))
    linear, random = (history_of(tmp_path / name)[0]["loss"] for name in ("True", "False"))
    assert linear < 0.2 * random


def test_latents_of_a_trained_vae_are_normalised(tmp_path):
    recipe = recipe_of("shapes_vae", train=replace(TRAIN, picture_every=0))
    model, source = load(train_recipe(recipe, tmp_path / "run")), recipe.data.source()
    images = [source.batch(draws_for(len(source), 1, start, 64)) for start in range(0, 256, 64)]
    latents = torch.cat([model.encode(batch).data.flatten(0, 1) for batch in images])
    torch.testing.assert_close(latents.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(0), torch.ones(16), atol=1e-4, rtol=0)
    raw = torch.cat([model.posterior(batch)[0].flatten(0, 1) for batch in images[:4]])
    assert (raw.std(0) - 1).abs().max() > 0.01


def test_l1_perceptual_and_kl_are_trained_together(tmp_path):
    weights = ObjectiveConfig(l1=1, perceptual=0.5, perceptual_network="lite0", bottleneck=0.001)
    train_recipe(
        replace(recipe_of("shapes_vae", train=replace(TRAIN, log_every=1)), objective=weights), tmp_path / "run"
    )
    for row in history_of(tmp_path / "run"):
        assert row["loss"] == pytest.approx(row["l1"] + row["perceptual"] + row["kl"], rel=1e-6)
        assert row["perceptual"] > 0
    train_recipe(recipe_of("shapes_vae"), tmp_path / "without")
    assert "perceptual" not in history_of(tmp_path / "without")[0]


def test_the_perceptual_term_has_a_gradient_and_its_network_is_not_saved():
    recipe = recipe_of("shapes_vae")
    model = build_autoencoder(recipe.model)
    weights = ObjectiveConfig(perceptual=1, perceptual_network="lite0")
    objective = TokenizerObjective(model, weights, perceptual=perceptual("lite0"))
    terms = objective(recipe.data.source().batch(draws_for(40, 0, 0, 2))).terms
    terms["perceptual"].backward()
    assert model.decoder.conv_out.weight.grad.abs().max() > 0
    assert model.quant_conv.weight.grad.abs().max() > 0
    assert {name.split(".")[0] for name in objective.state_dict()} == {"autoencoder"}
    with pytest.raises(ValueError, match="a perceptual network is needed"):
        TokenizerObjective(model, weights)


def test_an_unknown_perceptual_network_is_refused_before_training(tmp_path):
    recipe = load_recipe("shapes_fsq", ["objective.perceptual=1", "objective.perceptual_network=lpips-vg"])
    with pytest.raises(ValueError, match=r"lpips-vg.*expected one of lpips-vgg"):
        train_recipe(replace(recipe, data=SHAPES), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------ generators


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Token stores that `encode_folder` wrote: of codes for the autoregressive model, of latents for the flow."""
    root = tmp_path_factory.mktemp("stores")
    images = write_folder(Shapes(12, 0), root / "images")
    for name in ("shapes_fsq", "shapes_vae"):
        torch.manual_seed(0)
        model = build_autoencoder(load_recipe(name).model).eval()
        model.calibrate([ImageArrays(Shapes(12, 0).images).batch(draws_for(12, 0, 0, 12))])
        encode_folder(model, images, root / name)
    return {"autoregressive": root / "shapes_fsq", "flow": root / "shapes_vae"}


def generator_recipe(kind, stores, **changes):
    model = {"kind": kind, "width": 16, "depth": 1, "heads": 2, "drop_condition": 0.5}
    train = replace(TRAIN, picture_every=0, **changes)
    return GeneratorRecipe(model=model, tokens=str(stores[kind]), train=train)


@pytest.mark.parametrize("kind", ["autoregressive", "flow"])
def test_a_generator_is_trained_on_a_store(kind, tmp_path, stores):
    result = train_recipe(generator_recipe(kind, stores), tmp_path / "run")
    assert result == tmp_path / "run" / "generator"
    model, store = backbones.load(result), TokenDataset(stores[kind])
    assert model.spec == store.spec
    assert (result / TOKENIZER_FILE).read_text().strip() == store.fingerprint
    assert len(history_of(tmp_path / "run")) == 4
    if kind == "autoregressive":
        options = generator_recipe(kind, stores).model
        fresh = backbones.build(options.pop("kind"), options, store.spec, store.codebook_VD)
        assert torch.equal(model.codes.codebook, fresh.codes.codebook)
    batch = store.batch([0, 1])
    losses = model.loss(batch)
    assert set(losses) == ({"image", "text"} if kind == "autoregressive" else {"velocity"})
    assert isinstance(model.sample(batch.captions, seed=0).check(model.spec), Tokens)


@pytest.mark.parametrize(("kind", "other"), [("autoregressive", "flow"), ("flow", "autoregressive")])
def test_a_store_of_the_wrong_kind_is_refused(kind, other, tmp_path, stores):
    recipe = replace(generator_recipe(kind, stores), tokens=str(stores[other]))
    with pytest.raises(ValueError, match=r"spec is (continuous|discrete)"):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("name", ["shapes_fsq", "shapes_vae"])
def test_an_interrupted_tokenizer_equals_an_uninterrupted_one(name, tmp_path, monkeypatch):
    recipe = recipe_of(name, train=replace(TRAIN, picture_every=0))
    whole = train_tokenizer(recipe, tmp_path / "whole")
    # One batch for the PCA, one for the picture, then one a step: it stops in the fourth step.
    monkeypatch.setattr(ImageArrays, "batch", stopping(ImageArrays.batch, 5))
    with pytest.raises(Stopped):
        train_recipe(recipe, tmp_path / "cut")
    monkeypatch.undo()
    assert len(history_of(tmp_path / "cut")) == 3
    with pytest.raises(ValueError, match=r"already: resume.*another"):
        train_recipe(recipe, tmp_path / "cut")
    assert fingerprint(load(train_recipe(recipe, tmp_path / "cut", resume=True))) == fingerprint(whole)
    assert history_of(tmp_path / "cut") == history_of(tmp_path / "whole")
    # Negative control: another seed gives another tokenizer.
    other = train_tokenizer(replace(recipe, train=replace(recipe.train, seed=1)), tmp_path / "other")
    assert fingerprint(other) != fingerprint(whole)


@pytest.mark.parametrize("kind", ["autoregressive", "flow"])
def test_an_interrupted_generator_equals_an_uninterrupted_one(kind, tmp_path, stores, monkeypatch):
    recipe = generator_recipe(kind, stores)
    whole = train_generator(recipe, tmp_path / "whole")
    monkeypatch.setattr(TokenDataset, "batch", stopping(TokenDataset.batch, 3))
    with pytest.raises(Stopped):
        train_recipe(recipe, tmp_path / "cut")
    monkeypatch.undo()
    resumed = backbones.load(train_recipe(recipe, tmp_path / "cut", resume=True))
    state = resumed.state_dict()
    assert [name for name, value in whole.state_dict().items() if not torch.equal(state[name], value)] == []
    assert history_of(tmp_path / "cut") == history_of(tmp_path / "whole")


def test_a_resumed_run_must_be_the_same_recipe(tmp_path):
    train_recipe(recipe_of(train=replace(TRAIN, steps=1)), tmp_path / "run")
    with pytest.raises(ValueError, match=r"differ in recipe.data.seed \(0 there, 5 here\)"):
        train_recipe(
            recipe_of(train=replace(TRAIN, steps=1), data=replace(SHAPES, seed=5)), tmp_path / "run", resume=True
        )


# --------------------------------------------------------------------------------------------------- PCA initialisation

HELDOUT = {
    "shapes": torch.stack([to_tensor(image) for image in Shapes(48, 1, "heldout").images]),
    "photos": torch.stack([to_tensor(p[y : y + 64, x : x + 64]) for p in heldout_photos().values() for y, x in
                           [(0, 0), (150, 200), (300, 500)]]),
}  # fmt: skip
BOTTLENECKS = {
    "fsq": {"kind": "fsq", "levels": [8, 5, 5, 5]},
    "vq": {"kind": "vq", "size": 1000, "dim": 8},
    "gaussian": {"kind": "gaussian", "dim": 16},
}


@pytest.mark.parametrize("kind", BOTTLENECKS)
@pytest.mark.parametrize("data", HELDOUT)
def test_pca_initialisation_beats_a_random_one_on_heldout_images(data, kind):
    recipe = load_recipe(f"{data}_fsq")
    source = ImageArrays(Shapes(256, 0).images) if data == "shapes" else recipe.data.source()
    decibels = []
    for pca in (False, True):
        torch.manual_seed(0)
        model = build_autoencoder(replace(recipe.model, bottleneck=BOTTLENECKS[kind], linear=True))
        if pca:
            pca_initialise(model, source.batch(draws_for(len(source), 1, 0, 64)))
        model.eval()
        decibels.append(float(psnr(model.decode(model.encode(HELDOUT[data])), HELDOUT[data]).mean()))
    random, linear = decibels
    assert random < 10
    assert linear > {"fsq": 18, "vq": 18, "gaussian": 25}[kind]
