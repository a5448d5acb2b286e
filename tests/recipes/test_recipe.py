"""Recipes: every packaged one loads and says what it costs; every mistake is one line with file, path and remedy."""

import re
import shlex

import pytest
import torch
import typer
import yaml

import backbones
import quantizers
from quantizers import KINDS
from recipes import cli
from recipes.schema.data import EmojiImages, FashionImages, FolderImages, PhotoCrops, ShapeImages, WordImages, size_of
from recipes.schema.files import find_recipe, packaged_recipes
from recipes.schema.recipe import FusedRecipe, GeneratorRecipe, TokenizerRecipe, load_recipe
from tokenizers_mm import build_autoencoder
from tokenizers_mm.config import ConfigError

COMMANDS = typer.main.get_command(cli.app).commands
PACKAGED = packaged_recipes()
TOKENIZER, GENERATOR = (yaml.safe_load(PACKAGED[name].read_text()) for name in ("shapes_fsq", "shapes_ar"))


def written(folder, recipe):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def refusal(name, assignments=None):
    with pytest.raises(ConfigError) as error:
        load_recipe(name, assignments)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def _weights_not_drawn(monkeypatch):
    """Random numbers of networks in full size take seconds; here their shapes alone count."""
    for name in ("uniform_", "normal_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_, **__: self)


@pytest.mark.usefixtures("_weights_not_drawn")
@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_recipes_load_and_can_be_built(name):
    recipe = load_recipe(name)
    assert recipe == load_recipe(str(PACKAGED[name]))
    if isinstance(recipe, GeneratorRecipe):
        assert recipe.model["kind"] in backbones.KINDS
        assert recipe.tokens.startswith("runs/tokens_")
    for tokenizer in tokenizers_of(recipe):
        if tokenizer.model is not None:
            with torch.device("meta" if name.startswith("imagenet/") else "cpu"):  # nothing is downloaded on "meta"
                built = build_autoencoder(tokenizer.model)
            assert built.spec.discrete == (built.bottleneck.kind not in ("gaussian", "identity"))


def tokenizers_of(recipe):
    """The recipes of tokenizers that are trained from nothing."""
    if isinstance(recipe, FusedRecipe):
        return [half for half in (recipe.semantic, recipe.perceptual) if isinstance(half, TokenizerRecipe)]
    return [recipe] if isinstance(recipe, TokenizerRecipe) else []


def head_of(name):
    lines = PACKAGED[name].read_text().splitlines()
    head = [line for line, code in zip(lines, (not line.startswith("#") for line in lines), strict=True) if not code]
    assert lines[: len(head)] == head, "the comment stands first"
    assert 3 <= len(head) <= 5
    for command in (command for line in head for command in line[2:].split("     ")[0].split(" && ")):
        words = command.removeprefix("accelerate launch -m recipes.cli ").removeprefix("tmm ").split()
        if command.startswith(("tmm ", "accelerate ")):
            COMMANDS[words[0]].make_context(words[0], words[1:])  # parses them, runs nothing
    return head


@pytest.mark.parametrize("name", [name for name in PACKAGED if not name.startswith("imagenet/")])
def test_packaged_recipes_state_command_cost_and_expectation(name):
    head = head_of(name)
    train = [line for line in head if line.startswith(f"# tmm train {name} --out runs/")]
    assert len(train) == 1
    assert re.search(r"     (about \d+ minutes? on one CPU core|a GPU\b)", train[0])
    assert head[-1].startswith("# Expect")


@pytest.mark.parametrize("name", [name for name in PACKAGED if name.startswith("imagenet/")])
def test_full_presets_state_command_cost_and_what_was_published(name):
    head = head_of(name)
    assert head[1].startswith(f"# accelerate launch -m recipes.cli train {name} ")
    assert "not measured here" in " ".join(head)
    assert head[-1].startswith(("# Published", "# Nothing published", "# Expect"))


def test_a_recipe_is_found_by_name_or_by_path(tmp_path, monkeypatch):
    assert find_recipe("shapes_fsq") == PACKAGED["shapes_fsq"]
    path = written(tmp_path, TOKENIZER)
    assert load_recipe(path) == load_recipe("shapes_fsq")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("mine.yaml") == load_recipe("shapes_fsq")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shapes_fsk", "recipe 'shapes_fsk': no such file, and not a packaged one; did you mean shapes_fsq or "),
        ("qqq", "recipe 'qqq': no such file, and not a packaged one; `tmm recipes` lists them"),
        ("no/such.yaml", "no/such.yaml: cannot be read (No such file or directory); check the path"),
    ],
)
def test_missing_recipes(name, message):
    assert refusal(name).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1\n", ": not valid YAML: "),
        ("- a\n", ": expected a mapping of keys to values, found list"),
        ("kind: !!python/object/apply:os.getcwd []\n", ": not valid YAML: could not determine a constructor"),
    ],
)
def test_files_that_hold_no_recipe(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert refusal(str(path)).startswith(f"{path}{message}")


def changed(base, **changes):
    return {**base, **{key: {**base.get(key, {}), **value} for key, value in changes.items()}}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({**TOKENIZER, "kind": "tok"}, ".kind = tok: expected one of tokenizer, fused, generator"),
        ({**TOKENIZER, "kind": ["tokenizer"]}, ".kind = ['tokenizer']: expected one of tokenizer, fused, generator"),
        (
            {k: v for k, v in TOKENIZER.items() if k != "kind"},
            ".kind = None: expected one of tokenizer, fused, generator",
        ),
        ({k: v for k, v in TOKENIZER.items() if k != "data"}, ".data: missing; add it"),
        ({**TOKENIZER, "modle": 1}, ".modle = 1: unknown key (did you mean model?); known: cache_features, data, "),
        (changed(TOKENIZER, train={"stps": 1}), ".train.stps = 1: unknown key (did you mean steps?); known: accumu"),
        (changed(TOKENIZER, train={"steps": "many"}), ".train.steps = 'many': input should be a valid integer"),
        (changed(TOKENIZER, train={"steps": 0}), ".train: steps=0: expected at least 1"),
        (changed(TOKENIZER, objective={"l2": 0}), ".objective: l1, l2, perceptual, velocity and text are all 0: at"),
        (
            changed(TOKENIZER, model={"net": {"chanels": 8}}),
            ".model.net.chanels = 8: unknown key (did you mean channels?); known: ",
        ),
        (
            changed(TOKENIZER, model={"bottleneck": {"kind": "gausian"}}),
            f": model.bottleneck.kind = 'gausian': expected one of {', '.join(KINDS)} (did you mean gaussian?)",
        ),
        (
            changed(TOKENIZER, model={"bottleneck": {"kind": "fsq", "level": [3]}}),
            ": model.bottleneck.level = [3]: unknown",
        ),
        (changed(TOKENIZER, model={"bottleneck": {"kind": "fsq", "levels": [1]}}), ": model.bottleneck: levels=(1,): "),
        ({**GENERATOR, "tokens": 3}, ".tokens = 3: input should be a valid string"),
        ({**GENERATOR, "model": {"kind": "autoregresive"}}, ": model.kind = autoregresive: expected one of autore"),
        ({**GENERATOR, "model": {"width": 8}}, ": model.kind = None: expected one of autoregressive, flow"),
        (
            changed(GENERATOR, model={"wdth": 3}),
            ": model.wdth = 3: unknown key (did you mean width?); known: classes, depth, drop_condition, ",
        ),
        (changed(GENERATOR, model={"width": "wide"}), ": model.width = 'wide': input should be a valid integer"),
        (changed(GENERATOR, model={"drop_condition": 2}), ": model: drop_condition=2.0: expected a share in [0, 1]"),
        # Inside the union of data sets, whose member is named by `kind`.
        (
            {**TOKENIZER, "data": {"kind": "photos", "crops": 3}},
            ".data.crops = 3: unknown key (did you mean crop?); known: crop, kind, max_downscale",
        ),
        (
            {**TOKENIZER, "data": {"kind": "folder", "path": "x", "size": 8, "flips": True}},
            ".data.flips = True: unknown key (did you mean flip?); known: captions, crop, features, flip",
        ),
        (
            {**TOKENIZER, "data": {"kind": "fotos"}},
            ".data = {'kind': 'fotos'}: input tag 'fotos' found using 'kind' does not match any of the expected tags: "
            "'photos', 'shapes', 'emoji', ",
        ),
        ({**TOKENIZER, "data": {"crop": 3}}, ".data = {'crop': 3}: unable to extract tag using discriminator 'kind'"),
        ({**TOKENIZER, "data": 3}, ".data = 3: input should be a valid dictionary"),
        ({**TOKENIZER, "data": {"kind": "folder", "path": "x"}}, ".data.size: missing; add it"),
        ({**TOKENIZER, "data": {"kind": "shapes", "count": 0}}, ".data: count=0: expected at least 1"),
        ({**TOKENIZER, "data": {"kind": "photos", "crop": 0}}, ".data: crop=0: expected at least 1"),
        ({**TOKENIZER, "data": {"kind": "folder", "path": "x", "size": 0}}, ".data: size=0: expected at least"),
    ],
)
def test_mistakes_are_named(tmp_path, recipe, message):
    path = written(tmp_path, recipe)
    assert refusal(path).startswith(f"{path}{message}")


def test_reading_a_recipe_draws_no_random_numbers_and_takes_no_memory(monkeypatch):
    """Its quantizer is tried, and built only where it is trained."""
    made = []
    real = quantizers.build
    monkeypatch.setattr(quantizers, "build", lambda *given: made.append(real(*given)) or made[-1])
    before = torch.get_rng_state()
    recipe = load_recipe("shapes_fsq", ["model.bottleneck={kind: vq, size: 4096, dim: 64}"])
    assert [value.device.type for module in made for value in module.state_dict().values()] == ["meta"] * 3
    assert torch.equal(torch.get_rng_state(), before)
    build_autoencoder(recipe.model)
    assert made[-1].codebook_KD.device.type == "cpu"
    assert not torch.equal(torch.get_rng_state(), before)
    expected = "model.bottleneck"
    assert expected in refusal("shapes_fsq", ["model.bottleneck={kind: vq, size: 1, dim: 64}"])


def test_overrides_change_what_they_name_and_nothing_else(tmp_path):
    plain = load_recipe("shapes_fsq")
    recipe = load_recipe("shapes_fsq", ["train.steps=7", "train.betas=[0.5, 0.6]", "model.net.channels=16"])
    assert (recipe.train.steps, recipe.train.betas, recipe.model.net.channels) == (7, (0.5, 0.6), 16)
    assert (recipe.data, recipe.objective) == (plain.data, plain.objective)
    other = load_recipe("shapes_fsq", ["data={kind: folder, path: x, size: 32}"])
    assert other.data == FolderImages(path="x", size=32)
    generator = load_recipe("shapes_ar", ["model.width=64", "model.drop_condition=2e-1", f"tokens={tmp_path}"])
    assert generator.tokens == str(tmp_path)
    assert generator.model["width"] == 64
    assert generator.model["drop_condition"] == 0.2  # YAML 1.1 reads 2e-1 as text
    assert "max_text" in generator.model  # complete: the record of a run says everything
    file = PACKAGED["shapes_fsq"]
    assert refusal("shapes_fsq", ["train.step=7"]).startswith(f"{file}.train.step = 7: unknown key (did you mean step")
    assert refusal("shapes_fsq", ["data.kind=photos"]).startswith(f"{file}.data.count = 12000: unknown key")
    assert refusal("shapes_fsq", ["steps"]) == "--set steps: expected path.to.key=value"


@pytest.mark.parametrize(
    ("name", "assignments", "given", "remedies"),
    [
        (
            "shapes_fsq",
            ["data.image_size=64"],
            "data.image_size=64, model.image_size=[32, 32]",
            "--set data.image_size=32 or --set 'model.image_size=[64, 64]'",
        ),
        (
            "photos_fsq",
            ["data.crop=64"],
            r"data.crop=64, model.image_size=[48, 48]",
            "--set data.crop=48 or --set 'model.image_size=[64, 64]'",
        ),
        (
            "folder_vq",
            ["data.size=128"],
            "data.size=128, model.image_size=[256, 256]",
            "--set data.size=256 or --set 'model.image_size=[128, 128]'",
        ),
        (
            "words_fsq",
            ["data.width=64"],
            "data.height=32, data.width=64, model.image_size=[32, 96]",
            "--set data.height=32 --set data.width=96 or --set 'model.image_size=[32, 64]'",
        ),
        (  # a square cannot be made oblong by its own key
            "shapes_fsq",
            ["model.image_size=[32, 64]"],
            "data.image_size=32, model.image_size=[32, 64]",
            "say --set 'model.image_size=[32, 32]'",
        ),
    ],
)
def test_images_of_another_size_than_the_model_are_refused_with_both_remedies(name, assignments, given, remedies):
    message = refusal(name, assignments)
    assert given in message
    assert message.endswith(remedies)
    for remedy in remedies.removeprefix("say ").split(" or "):  # each of them is one
        words = shlex.split(remedy)
        load_recipe(name, [*assignments, *(word for word in words if word != "--set")])


def test_every_kind_of_data_says_its_size():
    for data, size in (
        (PhotoCrops(crop=24), (24, 24)),
        (ShapeImages(image_size=16), (16, 16)),
        (EmojiImages(image_size=48), (48, 48)),
        (FashionImages(image_size=28), (28, 28)),
        (WordImages(height=16, width=40), (16, 40)),
        (FolderImages(path="x", size=8), (8, 8)),
    ):
        assert size_of(data)[1] == size
