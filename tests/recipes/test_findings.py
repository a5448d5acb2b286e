from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from recipes.demo.findings import measure_demo
from recipes.gates.figures import Example, Figure, Findings, merge
from recipes.gates.generators import measure_copies_control, measure_samples
from recipes.gates.samples import DrawnSamples
from recipes.gates.shapes import Evaluator, as_images, chance_range, control
from recipes.inputs.run_folder import trained_precision
from tokenizers_mm.data.sets.shapes import ATTRIBUTES, Shapes
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.measure.judge import AttributeJudge

COLUMNS = (*ATTRIBUTES, "joint")


class Oracle:
    """A judge that knows every image it was shown, and reads all others as the first of each attribute."""

    def __init__(self, *known: Shapes) -> None:
        self.attributes = {
            image.tobytes(): row
            for shapes in known
            for image, row in zip(shapes.images, shapes.attributes, strict=True)
        }

    def predict(self, image_BCHW: Tensor) -> Tensor:
        pixels = ((image_BCHW + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        nothing = np.zeros(len(ATTRIBUTES), np.int64)
        return torch.from_numpy(np.stack([self.attributes.get(image.tobytes(), nothing) for image in pixels]))

    def features(self, image_BCHW: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(image_BCHW, 4).flatten(1)


@pytest.fixture(scope="module")
def halves() -> dict[str, Shapes]:
    return {"seen": Shapes(100, 103, "train"), "heldout": Shapes(100, 104, "heldout")}


@pytest.fixture(scope="module")
def evaluator(halves: dict[str, Shapes]) -> Evaluator:
    real, train = Shapes(432 * 4, 5, "all"), Shapes(2000, 0, "train")
    judge = Oracle(real, train, *halves.values())
    return Evaluator(
        judge=cast(AttributeJudge, judge),
        judge_words="oracle",
        real=real,
        test=Shapes(200, 6, "all"),
        train=train,
        train_TF=judge.features(as_images(train)),
        findings=Findings(),
    )


@pytest.fixture(scope="module")
def perfect(halves: dict[str, Shapes], evaluator: Evaluator) -> DrawnSamples:
    """A generator that draws what it is asked for: fresh real images."""
    labels = [int(label) for shapes in halves.values() for label in shapes.labels[:12]]
    rows = np.concatenate([np.flatnonzero(evaluator.real.labels == label)[:4] for label in labels])
    return DrawnSamples(
        name="ar",
        protocol={"sampling": "none"},
        halves=halves,
        images=torch.cat([as_images(shapes) for shapes in halves.values()]),
        alike=as_images(evaluator.real)[rows],
        null=as_images(evaluator.real)[:64],
    )


@pytest.fixture
def ceiling() -> Findings:
    figures = {f"shapes/fsq/{name}": Figure(value=1.0, unit="share", protocol="p") for name in COLUMNS}
    return Findings(figures=figures)


def test_a_perfect_generator_reaches_everything(perfect: DrawnSamples, evaluator: Evaluator, ceiling: Findings) -> None:
    found = measure_samples(perfect, evaluator, ceiling)
    assert {path: figure.reached for path, figure in found.figures.items() if figure.reached is False} == {}
    for split in ("all", "seen", "heldout"):
        assert [found.value(f"shapes/ar/{split}/{name}") for name in COLUMNS] == [1.0] * 5
    assert found.value("shapes/ar/diversity") == pytest.approx(1, abs=1e-6)
    assert found.value("shapes/ar/distance_ratio") == 1
    assert all(example.right and example.caption == example.read for example in found.examples["ar_samples"])


def test_targets_are_shares_of_the_ceiling_which_counts_as_its_gate_at_least(
    perfect: DrawnSamples, evaluator: Evaluator, ceiling: Findings
) -> None:
    figures = dict(ceiling.figures)
    figures["shapes/fsq/colour"] = replace(figures["shapes/fsq/colour"], value=0.98)
    figures["shapes/fsq/size"] = replace(figures["shapes/fsq/size"], value=0.5)
    found = measure_samples(perfect, evaluator, Findings(figures=figures))
    targets = {name: found[f"shapes/ar/all/{name}"].at_least for name in COLUMNS}
    assert targets == pytest.approx(
        {"size": 0.9 * 0.93, "colour": 0.9 * 0.98, "shape": 0.75, "position": 0.9, "joint": None}
    )
    assert found["shapes/ar/seen/colour"].reached is None


def test_a_generator_that_ignores_its_caption_misses(
    perfect: DrawnSamples, evaluator: Evaluator, ceiling: Findings
) -> None:
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    found = measure_samples(replace(perfect, images=perfect.images[order]), evaluator, ceiling)
    assert [found[f"shapes/ar/all/{name}"].reached for name in ATTRIBUTES] == [False] * 4
    wrong = [example for example in found.examples["ar_samples"] if not example.right]
    assert wrong
    assert all(example.caption != example.read for example in wrong)


def test_a_generator_that_copies_or_repeats_itself_misses(
    perfect: DrawnSamples, evaluator: Evaluator, ceiling: Findings
) -> None:
    copier = replace(perfect, images=as_images(evaluator.train)[:200])
    found = measure_samples(copier, evaluator, ceiling)
    assert (found.value("shapes/ar/copies"), found["shapes/ar/copies"].reached) == (1.0, False)
    assert (found.value("shapes/ar/distance_ratio"), found["shapes/ar/distance_ratio"].reached) == (0.0, False)
    same = perfect.alike[::4].repeat_interleave(4, 0)
    found = measure_samples(replace(perfect, alike=same), evaluator, ceiling)
    assert found.value("shapes/ar/diversity") < 1e-9
    assert found["shapes/ar/diversity"].reached is False


def test_a_control_above_chance_is_not_passed_over(
    perfect: DrawnSamples, evaluator: Evaluator, ceiling: Findings
) -> None:
    asked = np.concatenate([shapes.attributes for shapes in perfect.halves.values()])
    leak = np.random.default_rng(1).permutation(asked)[:64]
    rows = [int(np.flatnonzero((evaluator.real.attributes == row).all(1))[0]) for row in leak]
    found = measure_samples(replace(perfect, null=as_images(evaluator.real)[rows]), evaluator, ceiling)
    assert [found.value(f"control/ar_null/{name}") for name in COLUMNS] == [1.0] * 5
    assert [found[f"control/ar_null/{name}"].reached for name in COLUMNS] == [False] * 5
    assert all(found[f"control/ar_shuffled/{name}"].reached for name in COLUMNS)


def test_training_images_are_called_copies(evaluator: Evaluator) -> None:
    found = measure_copies_control(evaluator)
    assert found.value("control/copies/ratio") == 0
    assert found.value("control/copies/share") == 1
    assert [figure.reached for figure in found.figures.values()] == [True, True]


def test_chance_is_a_fair_guess_within_four_deviations() -> None:
    assert chance_range([0, 1, 2, 3] * 300, [3, 0, 2, 1] * 300) == pytest.approx((0.2, 0.3))
    assert chance_range(["a"] * 3 + ["b"], ["a", "b", "c", "d"]) == (0, 1)
    assert chance_range(["a"] * 100, ["b"] * 50 + ["a"] * 50) == pytest.approx((0.3, 0.7))
    assert chance_range(["a"] * 100, ["b"] * 100) == (0, 0)
    right = torch.from_numpy(Shapes(50, 0, "all").attributes)
    found = control("shuffled", right, right.numpy(), {})
    assert [figure.reached for figure in found.figures.values()] == [False] * 5


def test_everything_is_measured(findings: Findings) -> None:
    names = {path.rsplit("/", 1)[0] for path in findings.figures}
    photos = {f"photos/{photo}/{name}" for photo in ("china", "flower") for name in ("fsq", "vae")}
    codecs = {f"{path[:-3]}{codec}_at_{path[-3:]}" for path in photos for codec in ("jpeg", "webp")}
    shapes = {"shapes/judge", "shapes/fsq", "shapes/vae", "captions"}
    drawn = {f"shapes/{name}{part}" for name in ("ar", "flow") for part in ("", "/all", "/seen", "/heldout")}
    controls = {"shuffled", "random_fsq", "random_vae", "captions", "copies"} | {
        f"{name}_{kind}" for name in ("ar", "flow") for kind in ("shuffled", "null")
    }
    stores = {f"tokens/{name}" for name in ("fsq", "vae", "png")}
    assert names == photos | codecs | shapes | drawn | {f"control/{name}" for name in controls} | stores
    assert {figure.protocol for figure in findings.figures.values()} == set(findings.protocols)
    assert {name: len(rows) for name, rows in findings.examples.items()} == {
        "ar_samples": 16,
        "flow_samples": 16,
        "captions": 16,
    }


def test_figures_with_targets_are_those_that_were_asked_for(findings: Findings) -> None:
    asked = {path: (f.at_least, f.at_most) for path, f in findings.figures.items() if f.reached is not None}
    asked = {path: bounds for path, bounds in asked.items() if not path.startswith("control/")}
    assert {path: low for path, (low, _) in asked.items() if path.startswith("photos")} == {
        "photos/china/fsq/psnr": 20.0,
        "photos/flower/fsq/psnr": 25.5,
        "photos/china/vae/psnr": 21.5,
        "photos/flower/vae/psnr": 29.0,
    }
    assert [asked[f"shapes/judge/{name}"] for name in ATTRIBUTES] == [(0.99, None)] * 4
    assert asked["shapes/fsq/joint"] == asked["shapes/vae/joint"] == (0.93, None)
    assert (asked["captions/seen"], asked["captions/heldout"]) == ((0.90, None), (0.80, None))
    for name in ("ar", "flow"):
        assert asked[f"shapes/{name}/diversity"] == (0.5, 2.0)
        assert asked[f"shapes/{name}/distance_ratio"] == (0.8, 1.5)
        assert asked[f"shapes/{name}/copies"] == (None, 0.05)
    assert findings.targets()[1] == len(asked) == 26


def test_rates_are_honest(findings: Findings, demo_folder: Path) -> None:
    for photo in ("china", "flower"):
        fsq = findings.value(f"photos/{photo}/fsq/rate")
        # 71 rows are padded to 72: the tokens of the padding are paid for.
        assert fsq == pytest.approx(np.log2(1000) * 9 * 16 / (71 * 128))
        assert findings.value(f"photos/{photo}/fsq/nominal") == pytest.approx(np.log2(1000) / 64)
        assert findings.value(f"photos/{photo}/fsq/tokens") == 9 * 16
        for name in ("fsq", "vae"):
            for codec in ("jpeg", "webp"):
                figure = findings[f"photos/{photo}/{codec}_at_{name}/rate"]
                assert figure.value <= findings.value(f"photos/{photo}/{name}/rate") or "above the rate" in figure.note
    stored = (demo_folder / "tokens_fsq" / "00000.safetensors").stat().st_size
    assert findings.value("tokens/fsq/bytes") == stored
    assert findings.value("tokens/fsq/bits_per_image") == 160
    assert findings.value("tokens/png/bytes") == sum(p.stat().st_size for p in (demo_folder / "shapes").glob("*.png"))


def test_pictures_are_what_was_measured(findings: Findings, demo_folder: Path) -> None:
    def pixels(name: str) -> Any:
        return np.asarray(Image.open(demo_folder / "pictures" / f"{name}.png")).astype(float)

    for version in ("fsq", "vae", "jpeg_at_fsq", "webp_at_vae"):
        error = np.square(pixels(f"china_{version}") - pixels("china_original")).mean()
        assert findings.value(f"photos/china/{version}/psnr") == pytest.approx(10 * np.log10(255**2 / error))
    assert pixels("china_tokens").shape == (9, 16, 3)
    assert pixels("ar_samples").shape == pixels("flow_samples").shape == pixels("captions").shape == (16 * 32, 32, 3)
    assert np.array_equal(pixels("shapes_original").reshape(8, 32, 32, 3), Shapes(2000, 102, "all").images[:8])


def test_findings_are_written_and_read_back(findings: Findings, demo_folder: Path) -> None:
    text = (demo_folder / "findings.json").read_text()
    assert text == findings.to_json() + "\n"
    assert Findings.from_json(text).to_json() == findings.to_json()
    record = json.loads(text)["figures"]["photos/china/fsq/psnr"]
    assert record["at_least"] == 20
    assert record["reached"] is (record["value"] >= 20)
    assert findings.seconds == {"shapes_ar": 61.5, "everything": 570.0}
    assert {"torch", "python", "processor", "cores", "date"} <= set(findings.environment)


def test_progress_and_threads_are_left_as_they_were(findings: Findings) -> None:
    assert torch.get_num_threads() == 1


def test_without_the_network_there_is_no_perceptual_figure(findings: Findings) -> None:
    assert findings.environment["perceptual"] == ""
    assert not [path for path in findings.figures if path.endswith("perceptual")]


def test_with_the_network_every_photograph_has_one(demo_folder: Path, small_photos: None) -> None:
    from recipes.gates.photos import measure_photos

    network = perceptual("timm:test_efficientnet", random_init=True)
    found = measure_photos(demo_folder, network, lambda what: None)
    paths = {path for path in found.figures if path.endswith("/psnr")}
    assert {path.replace("/psnr", "/perceptual") for path in paths} <= set(found.figures)
    assert found.protocols["China, FSQ"]["extractor"] == network.name


def test_figures_know_whether_they_reached_their_target() -> None:
    def figure(value: float, low: float | None, high: float | None) -> bool | None:
        return Figure(value=value, unit="", protocol="p", at_least=low, at_most=high).reached

    assert figure(1, None, None) is None
    assert [figure(1, 1, None), figure(0.99, 1, None), figure(2, None, 2), figure(2.1, None, 2)] == [True, False] * 2
    assert [figure(v, 0.8, 1.5) for v in (0.7, 0.8, 1.5, 1.6)] == [False, True, True, False]


def test_controls_do_not_count_as_targets() -> None:
    good = Figure(value=1, unit="", protocol="p", at_least=1)
    found = Findings(
        figures={"a": good, "b": replace(good, value=0), "control/c": good, "d": replace(good, at_least=None)}
    )
    assert found.targets() == (1, 2)


def test_bad_input_is_refused(demo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples=15: expected.*number,.*16"):
        measure_demo(demo_folder, samples=15)
    with pytest.raises(ValueError, match="samples=17: expected an even number"):
        measure_demo(demo_folder, samples=17)
    with pytest.raises(ValueError, match=r"findings 'nonsense': expected what Findings\.to_json wrote"):
        Findings.from_json("nonsense")
    with pytest.raises(KeyError, match="no figure 'x'; there are"):
        Findings().value("x")
    with pytest.raises(AssertionError, match="measured twice"):
        merge([Findings(examples={"a": [Example(caption="", read="", right=True)]})] * 2)
    with pytest.raises(ValueError, match=r"photos_fsq:.*tokenizer;.*training"):
        measure_demo(tmp_path, samples=16, perceptual_name=None, judge_steps=1)
    with pytest.raises(ValueError, match=r"run\.json:.*finish training"):
        trained_precision(tmp_path)


def test_generators_draw_in_the_arithmetic_they_were_trained_in(
    findings: Findings, demo_folder: Path, tmp_path: Path
) -> None:
    assert {trained_precision(demo_folder / name) for name in ("shapes_ar", "shapes_flow")} == {"bf16"}
    (tmp_path / "run.json").write_text('{"train": {"precision": "auto"}, "precision": "no"}')
    assert trained_precision(tmp_path) == "no"  # what auto meant there
    (tmp_path / "run.json").write_text('{"train": {"precision": "fp16"}}')
    assert trained_precision(tmp_path) == "fp16"  # as runs were recorded before
    drawn = {protocol["arithmetic"] for protocol in findings.protocols.values() if "arithmetic" in protocol}
    assert drawn == {"bfloat16 autocast; the tokenizer float32"}
