"""Nobody is called best on the page of `tmm compare` without the bits that it spends and that others do not."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.compare.entries import Entry
from recipes.compare.measure import Comparison, Measured, Settings
from recipes.compare.page import write_comparison
from recipes.compare.ranking import RULE, best_at_each_rate, counted_rate, headlines
from tokenizers_mm import TokenSpec
from tokenizers_mm.measure.evaluation import Evaluation
from tokenizers_mm.measure.protocol import Measurement, Protocol


def one(
    name: str, rate: float, psnr: float | None = None, probe: float | None = None, *,
    kl: float | None = None, discrete: bool = True,
) -> Measured:  # fmt: skip
    """A tokenizer with these figures; rate and KL in bits per pixel."""
    codes: tuple[int, ...] = (64,) if discrete else ()
    spec = TokenSpec(image_size=(32, 32), grid=(4, 4), dim=3, codes=codes)
    entry = Entry(
        source=name, name=name, what="", spec=spec, weights=1, only=None, downsampling=8, encode_only=psnr is None,
        fingerprint="", licence="",
    )  # fmt: skip
    figures = {
        "Rate per pixel": rate, "PSNR": psnr, "KL per pixel": kl, "Linear probe": probe,
        "Most frequent class": None if probe is None else 50.0,
    }  # fmt: skip
    protocol = Protocol(reference="tones", samples=12)
    measured = [Measurement(key, value, "", protocol) for key, value in figures.items() if value is not None]
    return Measured(entry=entry, evaluation=Evaluation(tuple(measured)))


def told(*tokenizers: Measured) -> dict[str, tuple[str, str]]:
    """By its number: sentence, and label of the fact."""
    return {fact[0]: (sentence, fact[1]) for sentence, fact in headlines(tokenizers)}


def test_a_winner_at_25_times_the_bits_says_so_in_sentence_and_fact() -> None:
    sentence, label = told(one("lean", 0.96, 27.04), one("fat", 24.0, 31.2))["31.2 dB"]
    assert sentence == (
        "Closest to the pixels: 31.2 dB by fat at 24 bits per pixel, "
        "25 times the bits of lean (27.0 dB at 0.96 bits per pixel)."
    )
    assert label == "highest PSNR, fat at 24 bits per pixel, 25 times the bits of lean (27.0 dB)"


@pytest.mark.parametrize("other", [24.0, 20.0, 30.0, 2400.0], ids=["equal", "within", "a little more", "far more"])
def test_a_winner_at_equal_or_fewer_bits_is_simply_the_winner(other: float) -> None:
    sentence, label = told(one("loser", other, 27.0), one("winner", 24.0, 31.2))["31.2 dB"]
    assert sentence == "Closest to the pixels: 31.2 dB by winner at 24 bits per pixel."
    assert label == "highest PSNR, winner at 24 bits per pixel"


def test_just_outside_of_the_factor_is_another_rate() -> None:
    for rate, names in ((1.0, ["first"]), (0.999, ["first", "second"])):
        ranked = best_at_each_rate([one("first", 1.25, 31.0), one("second", rate, 30.0)], "PSNR")
        assert [ranked_one.entry.name for ranked_one in ranked] == names


def test_the_best_at_every_lower_rate_is_named_and_those_they_beat_are_not() -> None:
    tokenizers = [one("d", 0.1, 15.0), one("a", 10.0, 30.0), one("b", 1.0, 25.0), one("c", 2.0, 24.0)]
    sentence, label = told(*tokenizers)["30.0 dB"]
    assert "10 times the bits of b (25.0 dB at 1 bits" in sentence
    assert "100 times the bits of d (15.0 dB at 0.1 bits" in sentence
    assert " c " not in sentence
    assert label.endswith("10 times the bits of b (25.0 dB)")


def test_of_equal_figures_the_one_with_the_fewest_bits_stands_for_all() -> None:
    sentence, label = told(one("fat", 24.0, probe=100.0), one("lean", 1.0, probe=100.0))["100.0 %"]
    assert "by lean at 1 bits per pixel" in sentence
    assert "times" not in sentence + label


def test_latents_are_charged_their_kl_where_it_is_known_and_16_bits_a_channel_where_not() -> None:
    vae = one("vae", 48.0, 31.2, kl=0.6, discrete=False)
    features = one("rae", 48.0, 31.0, discrete=False)
    codes = one("vq", 0.6, 27.0, kl=0.1)  # codes are counted in full
    assert [counted_rate(each) for each in (vae, features, codes)] == [0.6, 48.0, 0.6]
    assert told(vae, codes)["31.2 dB"][1] == "highest PSNR, vae at 0.6 bits per pixel (KL)"
    sentence, label = told(features, codes)["31.0 dB"]
    assert "31.0 dB by rae at 48 bits per pixel (16 bits a channel), 80 times the bits of vq" in sentence
    assert "rae at 48 bits per pixel (16 bits a channel), 80 times" in label


def test_the_probe_has_the_same_rule_and_its_floor() -> None:
    sentence, label = told(one("tower", 10.0, probe=88.0, discrete=False), one("vq", 0.4, 25.0, 82.1))["88.0 %"]
    assert sentence == (
        "Best at telling what is in them by a linear probe: 88.0 % by tower at 10 bits per pixel (16 bits a channel), "
        "25 times the bits of vq (82.1 % at 0.4 bits per pixel); always the most frequent class: 50.0 %."
    )
    assert label == (
        "highest linear probe, tower at 10 bits per pixel (16 bits a channel), 25 times the bits of vq (82.1 %)"
    )


def test_a_single_one_is_not_compared() -> None:
    alone = told(one("vq", 0.5, 25.0, 80.0))
    beside_a_tower = told(one("vq", 0.5, 25.0), one("tower", 10.0, probe=88.0, discrete=False))
    assert alone["25.0 dB"] == beside_a_tower["25.0 dB"] == (
        "PSNR: 25.0 dB by vq at 0.5 bits per pixel.", "PSNR, vq at 0.5 bits per pixel",
    )  # fmt: skip
    for sentence, label in (*alone.values(), *beside_a_tower.values()):
        assert not any(word in (sentence + label).lower() for word in ("closest", "best", "highest", "times"))


def test_what_only_encodes_has_no_psnr_and_nothing_measured_has_no_headline() -> None:
    assert list(told(one("tower", 10.0, probe=88.0, discrete=False))) == ["88.0 %"]
    assert told(one("tower", 10.0, discrete=False)) == {}


@pytest.mark.parametrize("count", [1, 2])
def test_the_page_opens_with_it_and_states_the_rule_where_several_are_compared(tmp_path: Any, count: int) -> None:
    tokenizers = (one("fat", 24.0, 31.2), one("lean", 0.96, 27.0))[:count]
    comparison = Comparison(
        settings=Settings(images="tones"), title="tones", originals=(), tokenizers=tokenizers,
        codecs={"jpeg": (), "webp": ()}, codec_images=12, tiled=False, environment={"tokenizers-mm": "0"},
    )  # fmt: skip
    html = write_comparison(comparison, tmp_path).read_text(encoding="utf-8")
    (sentence, (number, label)), *_ = headlines(tokenizers)
    facts = html.partition('<dl class="facts">')[2].partition("</dl>")[0]
    assert label in facts
    assert f"<dd>{number.partition(' ')[0]}" in facts
    assert sentence in html.partition('<dl class="facts">')[0]
    assert ("25 times the bits of lean (27.0 dB" in html) == (RULE in html) == (count == 2)
