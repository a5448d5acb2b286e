"""open_clip through two tiny models of random weights: its own transformer, and one on timm."""

import json
import logging
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from tokenizers_mm.towers import OpenClipTextConfig, TextTower, TowerConfig, build_text, build_tower

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
MODELS = {
    "tiny": {"embed_dim": 24, "text_cfg": TEXT}
    | {"vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}},
    "tiny-timm": {"embed_dim": 24, "custom_text": True, "init_logit_bias": -10, "text_cfg": TEXT}
    | {"vision_cfg": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}},
}
TAGS = {
    "quick": {"hf_hub": "nobody/tiny/", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "quick_gelu": True},
    "plain": {"hf_hub": "nobody/tiny/", "mean": (0.48, 0.45, 0.4), "std": (0.26, 0.26, 0.27)},
}
CAPTIONS = ["a photo of a cat", "two dogs", "a cat"]


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = sys.modules["open_clip.factory"]
    for table in ("_MODEL_CONFIGS", "_MODEL_CONFIG_PATHS"):
        monkeypatch.setattr(factory, table, type(getattr(factory, table))(getattr(factory, table)))
    for name, config in MODELS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    monkeypatch.setitem(sys.modules["open_clip.pretrained"]._PRETRAINED, "tiny", TAGS)


def tower_of(model: str, **options: object) -> TextTower:
    tower = build_tower(TowerConfig(name=f"open_clip:{model}", **options), random_init=True)  # type: ignore[arg-type]
    assert isinstance(tower, TextTower)
    return tower


def images(side: int = 32, batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, side, side) * 2 - 1


@pytest.mark.parametrize(("model", "grid", "dim"), [("tiny", (4, 4), 16), ("tiny-timm", (4, 4), 64)])
def test_both_towers_are_open_clips_own(model: str, grid: tuple[int, int], dim: int) -> None:
    tower = tower_of(model)
    clip, image = tower.network.model, images(tower.spec.image_size[0])
    semantics, text = tower.semantics(image), tower.text_features(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(semantics.pooled_BD, clip.encode_image(tower.normalised(image)))
        torch.testing.assert_close(text, clip.encode_text(open_clip.get_tokenizer("tiny")(CAPTIONS)))
        logits = clip.get_logits(tower.normalised(image), open_clip.get_tokenizer("tiny")(CAPTIONS))[0]
    assert text.shape == (3, tower.pooled_dim) == (3, 24)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (semantics.pooled_BD, text)]
    assert torch.equal((unit[0] @ unit[1].T).argmax(1), logits.argmax(1))  # zero-shot classification
    assert tower.spec.grid == semantics.grid == grid
    assert semantics.patch_BND.shape == (3, 16, dim)


def test_patches_are_those_after_the_final_norm() -> None:
    tower, image = tower_of("tiny"), images()
    visual = tower.network.model.visual
    visual.output_tokens = True
    with torch.no_grad():
        _, tokens = visual(tower.normalised(image))
    torch.testing.assert_close(tower.semantics(image).patch_BND, tokens)
    visual.output_tokens = False
    earlier = tower_of("tiny", layer=0)
    earlier.load_state_dict(tower.state_dict())
    assert not torch.allclose(earlier.semantics(image).patch_BND, tokens, atol=0.1)
    with pytest.raises(ValueError, match=r"layer=2:.*network.*2, 0.*1"):
        tower_of("tiny", layer=2)


@pytest.mark.parametrize("model", ["tiny", "tiny-timm"])
def test_another_input_size(model: str) -> None:
    tower = tower_of(model, image_size=20, input_size=96)
    assert tower.semantics(images(20)).grid == tower.spec.grid == ((12, 12) if model == "tiny" else (6, 6))


def test_frozen_and_in_bfloat16() -> None:
    tower = tower_of("tiny").train().requires_grad_(True)
    assert not list(tower.parameters())
    image = images().requires_grad_()
    tower.semantics(image).pooled_BD.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    wide = tower.text_features(CAPTIONS)
    narrow = tower.to(torch.bfloat16).text_features(CAPTIONS)
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide).abs().max() < 0.1 * wide.abs().max()


def test_a_tag_says_activation_mean_and_deviation() -> None:
    """open_clip itself only warns where a tag was trained with the other GELU, and gives wrong features."""
    quick, plain = tower_of("tiny/quick"), tower_of("tiny/plain")
    activations = [tower.network.model.visual.transformer.resblocks[0].mlp.gelu for tower in (quick, plain)]
    assert [type(activation).__name__ for activation in activations] == ["QuickGELU", "GELU"]
    white = quick.normalised(torch.ones(1, 3, 32, 32))[0, :, 0, 0]
    torch.testing.assert_close(white, (1 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4]))
    assert plain.network.mean == (0.48, 0.45, 0.4)


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    tower = tower_of("tiny/plain")
    state = tower.network.model.state_dict()
    torch.save(state, tmp_path / "clip.pt")
    config = TowerConfig(name="open_clip:tiny/plain")
    image, again = images(), build_tower(config, weights=tmp_path / "clip.pt")
    assert torch.equal(again.semantics(image).pooled_BD, tower.semantics(image).pooled_BD)
    assert again.name == "open_clip:tiny/plain, 32 x 32 px"
    larger = build_tower(TowerConfig(name="open_clip:tiny/plain", input_size=64), weights=tmp_path / "clip.pt")
    assert larger.semantics(image).grid == (8, 8)
    del state["ln_final.bias"]
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"short\.pt:.*weights.*network .*ln_final\.bias"):
        build_tower(config, weights=tmp_path / "short.pt")
    # Two tags of this model normalise differently: a file alone does not say which of them it holds.
    with pytest.raises(ValueError, match=r"clip\.pt: weights.*differ.*open_clip:tiny/TAG"):
        build_tower(TowerConfig(name="open_clip:tiny"), weights=tmp_path / "clip.pt")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny", r"open_clip:tiny': which weights\? Say open_clip:tiny/TAG; known: quick, plain"),
        ("tinny", r"open_clip:tinny': no such model \(did you mean tiny\?\)"),
        ("tiny/other", r"open_clip:tiny/other': tiny has no weights 'other'; known: quick, plain"),
        ("tiny/plain", r"open_clip:tiny/plain': its weights could not be fetched .*pass weights=PATH"),
    ],
)
def test_names_and_weights_that_cannot_be_had(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_tower(TowerConfig(name=f"open_clip:{name}"))


def test_it_stays_quiet(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    before = list(logging.getLogger().handlers)
    with caplog.at_level(logging.WARNING):
        tower_of("tiny/quick")
    assert (caplog.records, list(recwarn), logging.getLogger().handlers) == ([], [], before)


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (["cat", " \n"], r"captions\[1\]=' \\n' is empty: give it words"),
        (["cat", None], r"captions\[1\] is NoneType: expected a text"),
        ("cat", r"captions='cat': expected a list of texts"),
        ([], r"captions are empty: expected one text per image"),
    ],
)
def test_captions_that_are_none_are_named(captions: list[str], words: str) -> None:
    for encoder in (tower_of("tiny").text_features, build_text(OpenClipTextConfig(name="tiny"), 24, random_init=True)):
        with pytest.raises(ValueError, match=words):
            encoder(captions)


def test_a_tokenizer_that_cannot_be_had_is_no_obstacle_to_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr(open_clip, "get_tokenizer", absent)
    tower = tower_of("tiny")
    assert len(tower.semantics(images())) == 3
    with pytest.raises(ValueError, match=r"open_clip:tiny': its text tokenizer .*'transformers'.*pip install"):
        tower.text_features(["cat"])


@pytest.mark.parametrize(("trainable", "dim"), [(False, 24), (False, 10), (True, 24), (True, 10)])
def test_the_text_tower_alone(trainable: bool, dim: int) -> None:
    config = OpenClipTextConfig(name="tiny", trainable=trainable)
    torch.manual_seed(2)
    encoder = build_text(config, dim, random_init=True).train().requires_grad_(True)
    out = encoder(CAPTIONS)
    assert out.shape == (3, dim)
    if dim == 24:
        expected = encoder.model.encode_text(open_clip.get_tokenizer("tiny")(CAPTIONS))
        torch.testing.assert_close(out, expected)
    names = {name for name, _ in encoder.named_parameters()}
    assert any(name.startswith("model.") for name in names) == trainable
    assert ("projection.weight" in names) == (dim == 10)
    assert not any("visual" in name or "logit" in name for name in encoder.state_dict())
    if names:  # no parameter is left that no text reaches
        out.square().sum().backward()
        assert all(parameter.grad is not None for parameter in encoder.parameters())
    torch.manual_seed(3)
    again = build_text(config, dim, random_init=True)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(CAPTIONS), out)
