"""Towers, fused tokenizers and tokenizers that know texts: saved, described, loaded; nothing here touches a network."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tokenizers_mm import (
    Autoencoder,
    AutoencoderConfig,
    Fused,
    Tower,
    TowerConfig,
    build_autoencoder,
    build_tower,
    fingerprint,
    load,
    save,
)
from tokenizers_mm.models.semantic_head import SemanticConfig
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.saving.card import model_card
from tokenizers_mm.towers import NGramTextConfig
from tokenizers_mm.towers.clip_text import OpenClipTextConfig
from tokenizers_mm.weights import CheckpointError, Provenance

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
IMAGE = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
CAPTIONS = ["a red heart", "grinning face", "Flagge: Österreich"]
PROVENANCE = Provenance("flux1", "somebody/flux", "0" * 40, "Apache-2.0", "Apache-2.0")
WORDS = NGramTextConfig(width=16, depth=1, heads=2, buckets=64)
HEADS = {
    "infonce": SemanticConfig(dim=12, pool="attention", text=WORDS),
    "sigmoid": SemanticConfig(dim=8, depth=1, contrast="sigmoid", text=WORDS),
    "no texts": SemanticConfig(dim=8),
}


def autoencoder_of(bottleneck=None, semantic=None, seed=0):
    torch.manual_seed(seed)
    bottleneck = bottleneck or {"kind": "product", "inner": {"kind": "vq", "size": 8, "dim": 2}, "groups": 2}
    model = build_autoencoder(AutoencoderConfig(image_size=(32, 32), bottleneck=bottleneck, net=NET, semantic=semantic))
    model(IMAGE)
    model.eval().calibrate([IMAGE])
    return model


def tower_of(seed=0, **options):
    torch.manual_seed(seed)
    options = {"name": "timm:test_vit", "image_size": 32, "input_size": 32, **options}
    tower = build_tower(TowerConfig(**options), random_init=True)
    tower.calibrate([IMAGE])
    return tower


GAUSSIAN = {"kind": "gaussian", "dim": 3}
FUSED = {
    "channel codes": lambda: Fused(autoencoder_of(semantic=HEADS["infonce"]), autoencoder_of({"kind": "fsq"}, seed=1)),
    "sequence codes": lambda: Fused(
        autoencoder_of({"kind": "bsq", "dim": 6}), autoencoder_of({"kind": "fsq"}, seed=1), "sequence"
    ),
    "channel latents": lambda: Fused(tower_of(), autoencoder_of(GAUSSIAN)),
    "sequence latents": lambda: Fused(tower_of(), autoencoder_of(GAUSSIAN), "sequence"),
    "of a fused one": lambda: Fused(tower_of(), FUSED["channel latents"]()),
}


# ------------------------------------------------------------------------------------- tokenizers that know texts


@pytest.mark.parametrize("head", HEADS)
def test_a_text_aligned_tokenizer_comes_back_whole(tmp_path, head):
    model = autoencoder_of(semantic=HEADS[head])
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    save(model, tmp_path / "tokenizer", card=True)
    again = load(tmp_path / "tokenizer")
    assert fingerprint(again) == fingerprint(model)
    assert again.config == replace(model.config, bottleneck=again.config.bottleneck)
    assert torch.equal(again.semantics(IMAGE).pooled_BD, model.semantics(IMAGE).pooled_BD)
    if HEADS[head].text is not None:
        assert torch.equal(again.text_features(CAPTIONS), model.text_features(CAPTIONS))
        assert again.text_features(CAPTIONS).shape == model.semantics(IMAGE).pooled_BD.shape
        assert torch.equal(again.semantic.scale, model.semantic.scale)
    assert (again.semantic.logit_bias is not None) == (head == "sigmoid")
    assert not again.training


def test_where_scale_and_bias_start():
    softmax, sigmoid = (autoencoder_of(semantic=HEADS[name]).semantic for name in ("infonce", "sigmoid"))
    assert softmax.scale.item() == pytest.approx(1 / 0.07)
    assert sigmoid.scale.item() == pytest.approx(10)
    assert sigmoid.logit_bias.item() == -10
    softmax.logit_scale.data.fill_(9.0)
    assert softmax.scale.item() == 100


def test_one_more_bit_of_a_text_encoder_is_another_tokenizer():
    model = autoencoder_of(semantic=HEADS["sigmoid"])
    before = fingerprint(model)
    for part in (model.semantic.logit_bias, model.semantic.text.projection.bias):
        part.data[...] += 1
        assert fingerprint(model) != before
        part.data[...] -= 1
    assert fingerprint(autoencoder_of()) != before


def test_empty_captions_are_named():
    with pytest.raises(ValueError, match=r"captions\[1\]=' ' is empty"):
        autoencoder_of(semantic=HEADS["sigmoid"]).text_features(["a cat", " "])


TINY_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "configs" / "tiny-clip.json")
    yield "tiny-clip"
    open_clip.factory._MODEL_CONFIGS.pop("tiny-clip")


def test_a_pretrained_text_encoder_is_saved_and_not_fetched_again(tmp_path, tiny_clip, monkeypatch):
    from tokenizers_mm.models import semantic_head

    build = semantic_head.build_text
    monkeypatch.setattr(semantic_head, "build_text", lambda *a, **k: build(*a, **k | {"random_init": True}))
    text = OpenClipTextConfig(name=tiny_clip)
    model = autoencoder_of(semantic=SemanticConfig(dim=8, text=text))
    expected = model.text_features(CAPTIONS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"open_clip:tiny-clip.*which weights"):
        autoencoder_of(semantic=SemanticConfig(dim=8, text=text))
    save(model, tmp_path / "tokenizer")
    again = load(tmp_path / "tokenizer")
    assert torch.equal(again.text_features(CAPTIONS), expected)
    assert fingerprint(again) == fingerprint(model)


# ----------------------------------------------------------------------------------------------------------- towers


def test_a_tower_comes_back_whole(tmp_path):
    tower = tower_of(image_size=(16, 48), layer=-2)
    save(tower, tmp_path / "tower", card=True)
    again = load(tmp_path / "tower")
    assert isinstance(again, Tower)
    assert fingerprint(again) == fingerprint(tower)
    assert again.spec == tower.spec
    assert (again.name, again.weights_sha256, again.config) == (tower.name, tower.weights_sha256, tower.config)
    assert torch.equal(again.semantics(IMAGE).pooled_BD, tower.semantics(IMAGE).pooled_BD)
    image = IMAGE[..., :16, :].repeat(1, 1, 1, 2)[..., :48]
    assert torch.equal(again.encode(image).data, tower.encode(image).data)
    assert not list(again.parameters())
    assert fingerprint(tower_of(seed=1, image_size=(16, 48), layer=-2)) != fingerprint(tower)
    assert fingerprint(tower_of(image_size=(16, 48))) != fingerprint(tower)


def test_a_text_tower_comes_back_with_its_texts(tmp_path, tiny_clip):
    torch.manual_seed(0)
    tower = build_tower(TowerConfig(name=f"open_clip:{tiny_clip}"), random_init=True)
    save(tower.to(torch.bfloat16), tmp_path / "tower")
    again = load(tmp_path / "tower", dtype=torch.bfloat16)
    assert torch.equal(again.text_features(CAPTIONS), tower.text_features(CAPTIONS))
    assert "zero-shot-image-classification" in model_card(again)
    fused = Fused(again, autoencoder_of(GAUSSIAN))
    assert torch.equal(fused.text_features(CAPTIONS), tower.text_features(CAPTIONS))


def test_names_of_networks_are_loaded_as_towers(tmp_path, monkeypatch):
    monkeypatch.setattr(build_tower, "__kwdefaults__", {"weights": None, "random_init": True})
    tower = load("timm:test_vit", config={"image_size": [32, 48], "input_size": 32})
    assert tower.spec.image_size == (32, 48)
    assert tower.name.startswith("timm:test_vit, 32 x 32 px")
    assert tower.provenance == Provenance("timm", "timm:test_vit", None, "Apache-2.0", "apache-2.0")
    assert load("lite0").provenance.licence_weights == "apache-2.0"
    assert "license: apache-2.0" in model_card(tower)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"timm:test_vit: config.image_sizes = 3: unknown key"):
        load("timm:test_vit", config={"image_sizes": 3})
    with pytest.raises(CheckpointError, match=r"timm:test_vit: family='flux1' says nothing about this network"):
        load("timm:test_vit", family="flux1")
    with pytest.raises(CheckpointError, match=r"name='timm:no_such_vit': timm has no such model"):
        load("timm:no_such_vit")
    monkeypatch.chdir(tmp_path)
    save(autoencoder_of(), "lite0")
    assert isinstance(load("lite0"), Autoencoder)  # a folder of that name goes first


# ------------------------------------------------------------------------------------------------------------ fused


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_tokenizer_comes_back_whole(tmp_path, name):
    model = FUSED[name]().eval()
    model.calibrate([IMAGE])
    save(model, tmp_path / "fused", card=True)
    assert sorted(p.name for p in (tmp_path / "fused").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = Fused.from_pretrained(tmp_path / "fused")
    assert fingerprint(again) == fingerprint(model)
    assert again.spec == model.spec
    tokens = model.encode(IMAGE)
    assert torch.equal(again.encode(IMAGE).data, tokens.data)
    assert torch.equal(again.decode(tokens), model.decode(tokens))
    assert torch.equal(again.semantics(IMAGE).pooled_BD, model.semantics(IMAGE).pooled_BD)
    assert not again.training
    if name == "channel codes":
        assert torch.equal(again.text_features(CAPTIONS), model.text_features(CAPTIONS))


def test_fingerprints_of_fused_tokenizers():
    tower, perceptual, model = tower_of(), autoencoder_of(GAUSSIAN), FUSED["channel latents"]()
    before = fingerprint(model)
    assert fingerprint(Fused(tower, perceptual)) == before
    model.perceptual.provenance = PROVENANCE
    assert fingerprint(model) == before
    others = [
        Fused(tower, perceptual, "sequence"),
        Fused(perceptual, tower),
        Fused(Fused(tower, perceptual), perceptual),
    ]
    seen = {before, *map(fingerprint, others)}
    for change in (model.semantic.latent_mean_D, model.perceptual.quant_conv.bias.data, model.semantic_std_D):
        change += 1
        seen.add(fingerprint(model))
    assert len(seen) == 7


def test_one_tokenizer_may_be_both_halves(tmp_path):
    both = autoencoder_of()
    save(Fused(both, both, "sequence"), tmp_path / "fused")
    again = load(tmp_path / "fused")
    assert torch.equal(again.encode(IMAGE).data, Fused(both, both, "sequence").encode(IMAGE).data)


def test_origins_and_precision_of_the_halves_are_kept(tmp_path):
    model = FUSED["channel latents"]()
    model.perceptual.provenance = PROVENANCE
    model.to(torch.bfloat16)
    save(model, tmp_path / "fused", card=True)
    again = load(tmp_path / "fused", dtype=torch.bfloat16)
    assert again.perceptual.provenance == PROVENANCE
    assert again.provenance is None
    assert fingerprint(again) == fingerprint(model)
    card = (tmp_path / "fused" / "README.md").read_text()
    data = yaml.safe_load(card.split("---\n")[1])
    assert data["license"] == "other"
    assert data["license_name"] == "apache-2.0-and-unknown"
    assert data["tags"] == ["image-tokenizer", "continuous", "fused", "flux1"]
    assert "## Source of the perceptual half" in card
    assert "Fused.from_pretrained" in card
    assert "gives images back" in card


def test_a_card_has_the_sources_of_halves_of_halves():
    inner = FUSED["channel latents"]()
    inner.perceptual.provenance = PROVENANCE
    card = model_card(Fused(tower_of(), inner))
    headings = [line for line in card.splitlines() if line.startswith("## Source")]
    perceptual = [f"## Source of the {name} half of the perceptual half" for name in ("semantic", "perceptual")]
    assert headings == ["## Source of the semantic half", *perceptual]
    assert yaml.safe_load(card.split("---\n")[1])["license_name"] == "apache-2.0-and-unknown"
    inner.provenance = PROVENANCE
    assert "## Source of the perceptual half\n\nPublic" in model_card(Fused(tower_of(), inner))


def test_the_card_of_a_tower():
    card = model_card(tower_of())
    assert "Tower.from_pretrained" in card
    assert "cannot give images back" in card
    assert "| network | timm:test_vit, 32 x 32 px (random weights) |" in card
    assert "| grid | 2x2 (4 positions, layout: raster) |" in card
    assert "| other sizes | none |" in card
    weights = sum(v.numel() for v in tower_of().state_dict().values()) - 2 * 64  # less the statistics
    assert f"| parameters | {weights / 1e6:.2f} M |" in card
    assert "Weights of timm:test_vit, 32 x 32 px (random weights). No licence of the weights is stated." in card


def test_the_card_of_a_text_aligned_tokenizer():
    card = model_card(autoencoder_of(semantic=HEADS["sigmoid"]))
    assert "| semantics | features of 8 channels, text encoder beside it |" in card
    assert "zero-shot-image-classification" in card
    card = model_card(autoencoder_of(semantic=HEADS["no texts"]))
    assert "| semantics | features of 8 channels, no text encoder |" in card
    assert "zero-shot" not in card


class Foreign:
    def __init__(self):
        self.spec = autoencoder_of(GAUSSIAN).spec


def test_foreign_halves_are_not_saved(tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"Foreign: cannot.*rebuild",
    ):
        save(Fused(Foreign(), autoencoder_of(GAUSSIAN)), tmp_path / "fused")
    assert list(tmp_path.iterdir()) == []


def test_each_class_reads_its_own(tmp_path):
    save(autoencoder_of(), tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match=r"tokenizer: holds.*Fused,.*autoencoder; .*mm\.load"):
        Fused.from_pretrained(tmp_path / "tokenizer")
    tower_of().save_pretrained(tmp_path / "tower")
    assert isinstance(Tower.from_pretrained(tmp_path / "tower"), Tower)
    with pytest.raises(CheckpointError, match=r"tower: holds.*Autoencoder,.*tower; .*mm\.load"):
        Autoencoder.from_pretrained(tmp_path / "tower")
    with pytest.raises(CheckpointError, match=r"stats=\S+.*autoencoders,.*Tower"):
        load(tmp_path / "tower", stats="stats.pt")
    save(FUSED["channel latents"](), tmp_path / "tower")  # any kind replaces any other
    assert isinstance(load(tmp_path / "tower"), Fused)


def damaged(folder, change):
    config, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config["model"], state)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")


DAMAGES = {
    "unknown key": (
        lambda c, s: c.update(who="me"),
        r"config.json.who = 'me': unknown key.*known: how, perceptual, sem",
    ),
    "no half": (lambda c, s: c.pop("semantic"), r"config.json.semantic: missing"),
    "kind of a half": (
        lambda c, s: c["semantic"].update(kind="clip"),
        r"config.json.semantic.kind = clip: expected one of autoencoder, tower, fused",
    ),
    "option of a half": (
        lambda c, s: c["perceptual"]["model"].update(zchannels=3),
        r"config.json.perceptual.zchannels = 3: unknown key \(did you mean z_channels",
    ),
    "network of a half": (
        lambda c, s: c["semantic"]["model"]["network"].update(name="timm:no_vit"),
        r"config.json.semantic: name='timm:no_vit': timm has no such model",
    ),
    "missing in a tower": (
        lambda c, s: s.pop("semantic.latent_mean_D"),
        r"does not fit its config.json, semantic half: missing keys: latent_mean_D",
    ),
    "missing in a tokenizer": (
        lambda c, s: s.pop("perceptual.latent_mean_D"),
        r"does not fit its config.json, perceptual half: missing keys: latent_mean_D",
    ),
    "missing of its own": (lambda c, s: s.pop("semantic_std_D"), r"missing keys: semantic_std_D"),
    "too much": (lambda c, s: s.update(extra=torch.zeros(1)), r"unexpected keys: extra"),
    "another way": (lambda c, s: c.update(how="sequence"), r"unexpected keys: semantic_mean_D, semantic_std_D"),
}


@pytest.fixture(scope="module")
def fused_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / "fused"
    save(FUSED["channel latents"](), folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(fused_folder, tmp_path, damage):
    folder = tmp_path / "fused"
    folder.mkdir()
    for path in fused_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change, message = DAMAGES[damage]
    damaged(folder, change)
    with pytest.raises(ValueError, match=message):
        load(folder)
