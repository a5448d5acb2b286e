"""Model cards, and the three verbs of the hub; nothing here touches a network."""

import copy
import inspect
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.hub_mixin
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from tokenizers_mm import Autoencoder, AutoencoderConfig, build_autoencoder, fingerprint
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.saving import download as hub
from tokenizers_mm.saving.card import is_generated, model_card
from tokenizers_mm.weights import CheckpointError, Provenance

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
PROVENANCE = Provenance("flux1", "somebody/flux", "0" * 40, "Apache-2.0", "Apache-2.0", ("loss.* (3)",))


def model_of(kind="gaussian", **options):
    bottleneck = {
        "gaussian": {"kind": "gaussian", "dim": 3},
        "vq": {"kind": "vq", "size": 8, "dim": 3},
        "product": {"kind": "product", "inner": {"kind": "vq", "size": 8, "dim": 3}, "groups": 2},
        "multiscale": {"kind": "multiscale", "inner": {"kind": "vq", "size": 8, "dim": 3}, "scales": [1, 2, 4]},
    }[kind]
    return build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=bottleneck, net=NET, **options)).eval()


def metadata(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def row(card, name):
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    return line.removeprefix(f"| {name} |").removesuffix("|").strip()


def test_geometry_is_that_of_the_spec():
    card = model_card(model_of("vq"))
    assert row(card, "image size") == "16x16 pixels"
    assert row(card, "grid") == "4x4 (16 positions, layout: raster)"
    assert row(card, "each position") == "1 code out of 8; vectors of 3 channels"
    assert row(card, "bits per image") == "48"
    assert row(card, "bits per pixel") == "0.1875"
    assert row(card, "other sizes") == "any multiple of 4"
    assert "Statistics" not in card
    assert row(model_card(model_of("product")), "each position") == "2 codes out of 8, 8; vectors of 6 channels"
    card = model_card(model_of("multiscale"))
    assert row(card, "grid") == "1x1, 2x2, 4x4 (21 positions, layout: scales)"
    assert row(card, "other sizes") == "none"
    card = model_card(model_of(latent_patch=2))
    assert row(card, "each position") == "a latent vector of 12 channels"
    assert row(card, "bits per image") == "768 (16 per latent channel)"


def test_parameters_are_counted():
    model = build_autoencoder(
        AutoencoderConfig(image_size=(64, 64), bottleneck={"kind": "gaussian", "dim": 4}, net=ConvConfig(channels=32))
    )
    total = sum(p.numel() for p in model.parameters())
    assert row(model_card(model), "parameters").startswith(f"{total / 1e6:.2f} M (encoder ")


def test_the_two_lines_that_load_are_python():
    lines = model_card(model_of()).split("```python\n")[1].split("```")[0].splitlines()
    assert len(lines) == 2
    assert lines[0] == "from tokenizers_mm import Autoencoder"
    assert compile(lines[1], "card", "exec")


def test_statistics():
    model = model_of()
    model.set_statistics(0.25, 2.0)
    assert "mean 0.25 and std 2 in every channel" in model_card(model)
    model.set_statistics(torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert "| 1 | -1 | 2 |" in model_card(model)
    model = model_of(latent_positions=True)
    model.set_statistics(torch.linspace(-1, 1, 48).view(16, 3), 2.0)
    assert "per position: mean from -1 to 1, std from 2 to 2" in model_card(model)
    wide = build_autoencoder(
        AutoencoderConfig(image_size=(16, 16), bottleneck={"kind": "gaussian", "dim": 100}, net=NET)
    )
    wide.set_statistics(torch.arange(100.0), 1.0)
    assert "per channel: mean from 0 to 99, std from 1 to 1" in model_card(wide)


def test_metadata_without_an_origin():
    data = metadata(model_card(model_of("vq")))
    assert data == {
        "library_name": "tokenizers-mm",
        "license": "unknown",
        "tags": ["image-tokenizer", "discrete", "vq"],
    }
    assert "No licence of the weights is stated" in model_card(model_of("vq"))


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("not stated", {"license": "unknown"}),
        ("", {"license": "unknown"}),
        ("CreativeML OpenRAIL-M (MIT for x)", {"license": "other", "license_name": "creativeml-openrail-m-mit-for-x"}),
        ("DeepSeek: use\nlimits", {"license": "other", "license_name": "deepseek-use-limits"}),
    ],
)
def test_licences(licence, expected):
    model = model_of()
    model.provenance = replace(PROVENANCE, licence_weights=licence)
    data = metadata(model_card(model))
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected
    assert data["tags"] == ["image-tokenizer", "continuous", "gaussian", "flux1"]


def test_free_text_cannot_break_the_card():
    model = model_of()
    hostile = "a | b\n---\nlicense: mit\n<script> \\"
    model.provenance = Provenance(hostile, hostile, hostile, hostile, hostile, (hostile,))
    card = model_card(model)
    assert metadata(card)["license"] == "other"
    assert "a | b --- license: mit <script> \\" in metadata(card)["tags"]
    for name in ("family", "source", "commit", "licence of the code", "licence of the weights", "left out"):
        assert row(card, name) == "a \\| b --- license: mit &lt;script> \\\\"
    assert ModelCard(card).data.license == "other"


def test_only_a_card_with_its_mark_is_generated():
    card = model_card(model_of())
    assert is_generated(card)
    assert not is_generated(card.replace("<!-- generated", "<!-- not generated"))
    assert not is_generated("# Tokenizer")


def test_a_saved_folder_has_a_card_that_the_hub_reads(tmp_path):
    model = model_of("vq")
    model.provenance = PROVENANCE
    assert model.save_pretrained(tmp_path / "new" / "tokenizer") is None
    folder = tmp_path / "new" / "tokenizer"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.license) == ("tokenizers-mm", "apache-2.0")
    assert card.content == (folder / "README.md").read_text() == str(model.generate_model_card())
    again = Autoencoder.from_pretrained(folder)
    assert fingerprint(again) == fingerprint(model)
    assert again.provenance == PROVENANCE
    assert not again.training
    assert Autoencoder.from_pretrained(str(folder), dtype=torch.bfloat16).decoder.last_layer.dtype == torch.bfloat16


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"choose another folder"):
        model_of().save_pretrained(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.json", '{"model_type": "bert"}')]


def test_arguments_that_mean_nothing_here_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^config=\{'a': 1\}: the tokenizer writes its own"):
        model_of().save_pretrained(tmp_path / "tokenizer", config={"a": 1})
    with pytest.raises(ValueError, match=r"^model_card_kwargs="):
        model_of().save_pretrained(tmp_path / "tokenizer", model_card_kwargs={"a": 1})
    assert list(tmp_path.iterdir()) == []
    model_of().save_pretrained(tmp_path / "tokenizer")
    for name, remedy in (
        ("token", "HF_TOKEN"),
        ("cache_dir", "HF_HUB_CACHE"),
        ("local_files_only", "HF_HUB_OFFLINE=1"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: not taken here; .*{remedy}"):
            Autoencoder.from_pretrained(tmp_path / "tokenizer", **{name: "x"})
    Autoencoder.from_pretrained(tmp_path / "tokenizer", token=None, force_download=False, local_files_only=False)
    with pytest.raises(CheckpointError, match=r"revision='main' is for hub repositories"):
        Autoencoder.from_pretrained(tmp_path / "tokenizer", revision="main")


def test_damage_is_told_by_our_loader(tmp_path):
    model_of().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer/config.json: not JSON"):
        Autoencoder.from_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match=r"nowhere"):
        Autoencoder.from_pretrained(tmp_path / "nowhere")


def test_a_hub_repository_is_loaded_at_its_revision(tmp_path, monkeypatch):
    model_of("vq").save_pretrained(tmp_path / "snapshot")
    asked = []

    def download(repo_id, revision=None, **_):
        asked.append((repo_id, revision))
        return hub.Downloaded(folder=tmp_path / "snapshot", commit="1" * 40)

    monkeypatch.setattr(hub, "download", download)
    assert Autoencoder.from_pretrained("somebody/tokenizer", revision="v2").bottleneck.kind == "vq"
    Autoencoder.from_pretrained("somebody/tokenizer")
    assert asked == [("somebody/tokenizer", "v2"), ("somebody/tokenizer", None)]


class FakeApi:
    """What `push_to_hub` uses of the hub's client; uploads stay in memory."""

    calls: list = []  # noqa: RUF012

    def __init__(self, token=None):
        self.calls.append(("login", token))

    def create_repo(self, repo_id, private=None, exist_ok=False):
        self.calls.append(("create", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=f"somebody/{repo_id.split('/')[-1]}")

    def upload_folder(self, *, repo_id, folder_path, revision, **options):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.calls.append(("upload", repo_id, revision, options, files))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    return FakeApi


def test_push_to_hub(api, tmp_path):
    model = model_of("vq")
    model.provenance = PROVENANCE
    url = model.push_to_hub("somebody/codes", private=True, branch="next", token="secret", commit_message="Codes")
    assert url == "https://hub/somebody/codes/commit/1"
    login, create, (kind, repo, revision, options, files) = api.calls
    assert (login, create) == (("login", "secret"), ("create", "somebody/codes", True, True))
    assert (kind, repo, revision, options["commit_message"]) == ("upload", "somebody/codes", "next", "Codes")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads(files["config.json"])["origin"]["family"] == "flux1"
    assert b"license: apache-2.0" in files["README.md"]
    assert not any(b"secret" in content for content in files.values())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert fingerprint(Autoencoder.from_pretrained(tmp_path)) == fingerprint(model)


def test_saving_and_pushing_at_once(api, tmp_path):
    url = model_of().save_pretrained(tmp_path / "latents", push_to_hub=True, private=False)
    assert url == "https://hub/somebody/latents/commit/1"
    assert api.calls[1] == ("create", "latents", False, True)
    assert (tmp_path / "latents" / "README.md").exists()
    model_of().save_pretrained(tmp_path / "latents", push_to_hub=True, repo_id="me/other")
    assert api.calls[4][1] == "me/other"


def test_the_base_class_changes_nothing_of_ours():
    model = model_of("multiscale")
    assert list(inspect.signature(Autoencoder).parameters) == ["config", "encoder", "bottleneck", "decoder", "semantic"]
    assert not any("hub" in name for name in model.state_dict())
    model.provenance = PROVENANCE
    copied, scaled = copy.deepcopy(model), model.with_scales([1, 4])
    assert fingerprint(copied) == fingerprint(model)
    assert copied.provenance == scaled.provenance == PROVENANCE
    assert scaled.spec.length == 17
    assert model_of().provenance is None
