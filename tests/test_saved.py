"""What an earlier version wrote is read, goes on and means the same: see tests/saved/README.md."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import backbones
from recipes import load_recipe, train_recipe
from recipes.programs.sample import open_pair
from tokenizers_mm import TokenDataset, TokenSpec, fingerprint, load, verify
from tokenizers_mm.data import Preprocess
from tokenizers_mm.store import StoreWriter
from tokenizers_mm.store.manifest import Inputs, StoreMismatch

SAVED = Path(__file__).parent / "saved"
TOKENIZERS = json.loads((SAVED / "tokenizers.json").read_text())
STORES = json.loads((SAVED / "stores.json").read_text())
GENERATORS = json.loads((SAVED / "generators.json").read_text())
RUN = json.loads((SAVED / "run.json").read_text())
IMAGE = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def floats(values, found):
    """Equal but for the rounding of another processor, and of the six digits that were written."""
    torch.testing.assert_close(found, torch.tensor(values), atol=2e-4, rtol=2e-4)


def test_everything_saved_is_tested():
    assert {path.name for path in (SAVED / "tokenizers").iterdir()} == set(TOKENIZERS)
    assert {path.name for path in (SAVED / "stores").iterdir()} == set(STORES)
    assert {path.name for path in (SAVED / "generators").iterdir()} == set(GENERATORS)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_saved_tokenizer_is_the_same(name):
    saved, model = TOKENIZERS[name], load(SAVED / "tokenizers" / name)
    assert model.spec.same_tokens(TokenSpec.from_json(json.dumps(saved["spec"])))
    assert model.spec.layout == ("parts" if name == "fused_sequence_codes" else saved["spec"]["order"])
    assert fingerprint(model) == saved["fingerprint"]
    with torch.no_grad():
        tokens = model.encode(IMAGE)
        assert json.loads(json.dumps(tokens.grid)) == saved["grid"]
        if "codes" in saved:
            assert tokens.data.tolist() == saved["codes"]
        else:
            floats(saved["latents"], tokens.data[:, :4].flatten(1))
        if saved["pixels"] is not None:  # a tower has none
            floats(saved["pixels"], model.decode(tokens)[:, :, ::8, ::8].flatten())


def test_another_image_or_weight_would_be_noticed():
    saved, model = TOKENIZERS["conv_fsq"], load(SAVED / "tokenizers" / "conv_fsq")
    assert model.encode(-IMAGE).data.tolist() != saved["codes"]
    next(model.parameters()).data.add_(1e-3)
    assert fingerprint(model) != saved["fingerprint"]


@pytest.mark.parametrize("name", STORES)
def test_a_saved_store_is_the_same(name):
    saved, store = STORES[name], TokenDataset(SAVED / "stores" / name)
    report = verify(store.path)
    assert (report.ok, report.encoded, report.quarantined) == (True, 3, 1)
    store.require(TOKENIZERS[name]["fingerprint"])
    assert (store.keys, list(store.captions), store.labels_I.tolist()) == (
        saved["keys"], saved["captions"], saved["labels"],
    )  # fmt: skip
    assert store.batch(range(3)).tokens.data.tolist() == saved["tokens"]
    assert (store.codebook_VD is None) == (saved["codebook"] is None)
    if saved["codebook"] is not None:
        assert float(store.codebook_VD.double().sum()) == pytest.approx(saved["codebook"], abs=1e-4)
    assert (store.quantizer is None) == ("vectors" not in saved)
    if "vectors" in saved:
        z_BND = store.quantizer.vectors(store.batch(range(3)).tokens.data)
        assert float(z_BND.double().abs().sum()) == pytest.approx(saved["vectors"], abs=1e-3)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_saved_generator_is_the_same(name):
    saved, generator = GENERATORS[name], backbones.load(SAVED / "generators" / name)
    floats(*saved.values(), outputs(generator))
    generator.grid.tables[0].weight.data[0].neg_()
    assert not torch.allclose(outputs(generator), torch.tensor(*saved.values()), atol=1e-2)  # another is noticed


@torch.no_grad()
def outputs(generator):
    """Nats of some codes, or velocities of some latents."""
    spec, labels = generator.spec, torch.tensor([0, 2, 1])
    count = 3 * spec.length
    if spec.discrete:
        codes = torch.stack([torch.arange(count).view(3, -1) * 7 % size for size in spec.codes], -1)
        condition = labels if generator.config.classes else ["a red cat", "", "b"]
        return torch.stack(generator.image_nats(codes, condition)).flatten()
    x = (torch.arange(count * 4.0).view(3, -1, 4) / 10).sin()
    return generator.velocity(x, torch.tensor([0.1, 0.5, 0.9]), generator.condition(labels)).flatten()


def test_a_fused_sequence_whose_parts_were_called_scales_is_gone_on_with(tmp_path):
    """A store begun then is finished now, and a generator trained then draws for the tokenizer; another's are not."""
    model = load(SAVED / "tokenizers" / "fused_sequence_codes")
    manifest = shutil.copytree(SAVED / "stores" / "fused_sequence_codes", tmp_path / "store") / "manifest.json"
    for path in (tmp_path / "store").glob("00001.*"):
        path.unlink()
    record = json.loads(manifest.read_text())["record"]
    before = TokenDataset(SAVED / "stores" / "fused_sequence_codes").spec
    assert (before.layout, model.spec.layout) == ("scales", "parts")
    other = replace(model.spec, dim=model.spec.dim + 1)
    rest = {"fingerprint": fingerprint(model), "preprocess": Preprocess(16, 4), "inputs": Inputs(**record["inputs"])}
    with StoreWriter(tmp_path / "store", model.spec, **rest) as writer:
        assert list(writer.records) == [0]
    with pytest.raises(StoreMismatch, match="spec"):
        StoreWriter(tmp_path / "store", other, **rest)
    options = {"width": 16, "depth": 1, "heads": 2}
    for name, spec in (("then", before), ("other", other)):
        backbones.save(backbones.build("autoregressive", options, spec), tmp_path / name)
    assert json.loads((tmp_path / "then" / "config.json").read_text())["spec"]["order"] == "scales"
    generator, tokenizer = open_pair(tmp_path / "then", model, "cpu")
    assert generator.sample([""]).check(tokenizer.spec).grid == tokenizer.spec.grid
    with pytest.raises(ValueError, match="layout='parts'"):
        open_pair(tmp_path / "other", model, "cpu")


def test_a_stopped_run_goes_on(tmp_path):
    """To the weights that it had then, but for another processor's rounding; a run that starts anew has others."""
    shutil.copytree(SAVED / "run", tmp_path / "run")
    recipe = load_recipe("shapes_fsq", RUN["set"])
    train_recipe(recipe, tmp_path / "run", resume=True)
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 6
    train_recipe(load_recipe("shapes_fsq", [*RUN["set"], "train.seed=1"]), tmp_path / "other")
    resumed, other = (load(tmp_path / name).state_dict() for name in ("run", "other"))
    far = [
        name for name, total in RUN["sums"].items()
        if float(resumed[name].double().abs().sum()) != pytest.approx(total, rel=2e-3, abs=1e-3)
    ]  # fmt: skip
    assert far == []
    assert [
        name for name, total in RUN["sums"].items()
        if float(other[name].double().abs().sum()) != pytest.approx(total, rel=2e-3, abs=1e-3)
    ]  # fmt: skip
