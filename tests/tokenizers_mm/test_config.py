"""Every message names the path, the value and the remedy."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.config import ConfigError, override, parse, read_yaml
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Whole:
    model: AutoencoderConfig
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1, batch_size=1))
    kind: Literal["whole"] = "whole"


MODEL = {"image_size": [32, 32], "bottleneck": {"kind": "fsq"}, "net": {"channels": 64, "multipliers": [1, 2]}}


def parsed(**changes):
    return parse(Whole, {"model": MODEL} | changes, "run.yaml")


def test_plain_data_becomes_typed_configuration():
    whole = parsed(train={"steps": 5, "batch_size": 4, "learning_rate": "3e-4", "betas": [0.5, 0.9]})
    assert whole.model.net == ConvConfig(channels=64, multipliers=(1, 2))
    assert whole.model.image_size == (32, 32)
    assert whole.train.learning_rate == 3e-4  # YAML 1.1 reads 3e-4 as text
    assert whole.train.betas == (0.5, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trian": {}}, "run.yaml.trian = {}: unknown key (did you mean train?); known: kind, model, train"),
        (
            {"model": MODEL | {"net": {"chanels": 64}}},
            "run.yaml.model.net.chanels = 64: unknown key (did you mean channels?); known: activation, ",
        ),
        ({"zzz": 1}, "run.yaml.zzz = 1: unknown key; known: kind, model, train"),
        ({"train": {"steps": "many", "batch_size": 1}}, "run.yaml.train.steps = 'many': input should be a valid int"),
        ({"train": {"steps": 1.5, "batch_size": 1}}, "run.yaml.train.steps = 1.5: input should be a valid integer"),
        ({"train": {"steps": 1}}, "run.yaml.train.batch_size: missing; add it"),
        ({"train": {"steps": 0, "batch_size": 1}}, "run.yaml.train: steps=0: expected at least 1"),
        (
            {"train": {"steps": 1, "batch_size": 1, "schedule": "step"}},
            "run.yaml.train.schedule = 'step': input should",
        ),
        ({"model": MODEL | {"net": {"channels": 48}}}, "run.yaml.model.net: channels=48: expected a multiple of group"),
        ({"model": MODEL | {"image_size": [32]}}, "run.yaml.model.image_size.1: missing; add it"),
        ({"model": 3}, "run.yaml.model = 3: input should be a dictionary"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ConfigError) as error:
        parsed(**changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "gausian"}, r"bottleneck.kind = 'gausian'.*gaussian"), ({"kind": "vq", "size": 8}, "bottleneck.dim")],
)
def test_bad_options_of_a_bottleneck_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_autoencoder(AutoencoderConfig(image_size=(32, 32), bottleneck=options))


def test_overrides_reach_inner_keys_and_leave_the_input_alone():
    data = {"train": {"steps": 5}, "model": MODEL}
    new = override(data, ["train.steps=7", "train.schedule=constant", "model.net.multipliers=[1, 1]", "objective.l2=1"])
    assert new["train"] == {"steps": 7, "schedule": "constant"}
    assert new["model"]["net"] == {"channels": 64, "multipliers": [1, 1]}
    assert new["objective"] == {"l2": 1}
    assert override({}, ["a=no", "b=true", "c=on"]) == {"a": "no", "b": True, "c": "on"}  # a precision is called "no"
    assert data == {"train": {"steps": 5}, "model": MODEL}
    assert MODEL["net"]["multipliers"] == [1, 2]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.steps", "--set train.steps: expected path.to.key=value"),
        ("=3", "--set =3: expected path.to.key=value"),
        ("train.steps.x=3", "--set train.steps.x=3: steps holds 5, which has no keys"),
        ("train.betas=[1, 2", "--set train.betas=[1, 2: not valid YAML"),
    ],
)
def test_bad_overrides_are_named(assignment, message):
    with pytest.raises(ConfigError) as error:
        override({"train": {"steps": 5}}, [assignment])
    assert str(error.value).startswith(message)


def test_yaml_files(tmp_path):
    path = tmp_path / "a.yaml"
    with pytest.raises(ConfigError, match=r"a.yaml: cannot be read \(No such file"):
        read_yaml(path)
    path.write_text("a: 1\nb: {c: [1, 2]}\n")
    assert read_yaml(path) == {"a": 1, "b": {"c": [1, 2]}}
    for text, message in [
        ("- 1\n", "expected a mapping of keys to values, found list"),
        ("", "expected a mapping of keys to values, found NoneType"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML.*could not determine a constructor"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_yaml(path)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)
