import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from tokenizers_mm.towers import NGramTextConfig, NGramTextEncoder, OpenClipTextConfig, TextConfig, build_text
from tokenizers_mm.towers.text import ngrams_of, words_of

SMALL = NGramTextConfig(width=32, depth=1, heads=2, buckets=1024)
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")


def test_words_and_pieces() -> None:
    assert words_of("Grinning Face, with ＢＩＧ eyes!") == ["grinning", "face", ",", "with", "big", "eyes", "!"]
    assert words_of("☃") == ["☃"]
    # The hash is that of the bytes: the same in every process and on every machine.
    assert ngrams_of("cat", 8192) == (703, 936, 1983, 3148, 6492, 6713)
    assert ngrams_of("a", 8192) == ngrams_of("a", 8192)
    assert len(ngrams_of("a", 8192)) == 1
    assert len(set(ngrams_of("cats", 8192)) & set(ngrams_of("cat", 8192))) >= 2


@pytest.mark.parametrize("training", [False, True])
def test_a_caption_alone_and_in_a_batch_gives_the_same_vector(training: bool) -> None:
    encoder = build_text(SMALL, 10).train(training)
    captions = ["cat", "a very long caption about nothing in particular", "two dogs"]
    together = encoder(captions)
    assert together.shape == (3, 10)
    for caption, vector in zip(captions, together, strict=True):
        torch.testing.assert_close(encoder([caption])[0], vector, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(encoder(captions), together, atol=1e-5, rtol=1e-4)


def test_case_order_and_length() -> None:
    encoder = build_text(SMALL, 10).eval()
    upper, lower, turned = encoder(["Dog bites MAN", "dog bites man", "man bites dog"])
    assert torch.equal(upper, lower)
    assert not torch.allclose(lower, turned, atol=1e-3)
    rows = ["word " * 32, "word " * 32 + "and more"]
    assert torch.equal(*encoder(rows))  # the 33rd word is not read


def test_without_layers_a_word_is_the_same_beside_any_other() -> None:
    encoder = build_text(NGramTextConfig(width=32, depth=0, heads=2, buckets=1024), 10)
    assert not encoder.layers
    captions = ["red cat", "red dog", "blue cat", "blue dog"]
    red_cat, red_dog, blue_cat, blue_dog = encoder(captions)
    torch.testing.assert_close(red_cat - red_dog, blue_cat - blue_dog)
    mixed = build_text(SMALL, 10)(captions)
    assert not torch.allclose(mixed[0] - mixed[1], mixed[2] - mixed[3], atol=1e-3)
    encoder(captions).sum().backward()
    assert encoder.pieces.weight.grad is not None
    assert encoder.pieces.weight.grad.abs().sum() > 0


def learned(shuffle: Callable[[Tensor], Tensor]) -> float:
    """Retrieval among 36 targets of 6 captions never seen, whose words were, after contrastive training on 30."""
    torch.manual_seed(0)
    colour, shape = torch.randn(6, 16), torch.randn(6, 16)
    pairs = list(itertools.product(range(6), range(6)))
    captions = [f"{COLOURS[c]} {SHAPES[s]}" for c, s in pairs]
    target = F.normalize(torch.stack([colour[c] + shape[s] for c, s in pairs]), dim=1)
    held_out = [i for i, (c, s) in enumerate(pairs) if c == s]
    seen = [i for i in range(36) if i not in held_out]
    encoder = build_text(SMALL, 16)
    optimizer = torch.optim.AdamW(encoder.parameters(), 3e-3, weight_decay=0.0)
    goal = target[seen][shuffle(torch.arange(30))]
    for _ in range(60):
        logits = 10 * F.normalize(encoder([captions[i] for i in seen]), dim=1) @ goal.T
        loss = F.cross_entropy(logits, torch.arange(30)) + F.cross_entropy(logits.T, torch.arange(30))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = (F.normalize(encoder([captions[i] for i in held_out]), dim=1) @ target.T).argmax(1)
    return float((found == torch.tensor(held_out)).float().mean())


def test_it_learns_what_words_mean_and_combines_them() -> None:
    assert learned(lambda index: index) >= 5 / 6
    assert learned(lambda index: index[torch.randperm(30)]) <= 1 / 6  # captions of other images teach nothing


def test_words_never_seen_share_their_pieces() -> None:
    encoder = build_text(NGramTextConfig(width=64, depth=1, heads=2), 32).eval()
    with torch.no_grad():
        vectors = encoder(["mountain", "mountains", "xylophone", "guitar", "tomato", "pizza", "whale", "ladder"])
    known, plural, *others = F.normalize(vectors - vectors.mean(0), dim=1)
    assert known @ plural > max(float(known @ other) for other in others) + 0.2


def test_it_is_a_module_that_is_saved_and_trained() -> None:
    first, second = build_text(SMALL, 10), build_text(SMALL, 10)
    assert not torch.equal(first(["cat"]), second(["cat"]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(["cat"]), second(["cat"]))
    first(["cat", "two dogs"]).sum().backward()
    assert all(parameter.grad is not None for parameter in first.parameters())
    layers = [build_text(NGramTextConfig(width=32, depth=2, heads=2), 4).layers[i].linear1.weight for i in range(2)]
    assert not torch.equal(*layers)  # torch's own stack copies one layer, so all start alike


def test_configurations_come_from_text() -> None:
    adapter = TypeAdapter(TextConfig)
    assert adapter.validate_python({}) == NGramTextConfig()
    assert adapter.validate_python({"kind": "words", "width": 64}) == NGramTextConfig(width=64)
    clip = adapter.validate_python({"kind": "open_clip", "name": "ViT-B-32/openai"})
    assert clip == OpenClipTextConfig(name="ViT-B-32/openai")
    assert isinstance(build_text(NGramTextConfig(), 4), NGramTextEncoder)


def test_bad_options_are_named(tmp_path) -> None:
    for options, words in (({"width": 0}, "width=0: expected at least 1"), ({"heads": 3}, "width=128: .*heads=3")):
        with pytest.raises(ValueError, match=words):
            NGramTextConfig(**options)
    with pytest.raises(ValueError, match="dim=0: expected at least 1"):
        build_text(SMALL, 0)
    with pytest.raises(ValueError, match=r"weights=.*'words' is trained from scratch"):
        build_text(SMALL, 4, weights=tmp_path)


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (["cat", ""], r"captions\[1\]='' is empty"),
        ([3], r"captions\[0\] is int: expected a text"),
        ("cat", r"captions='cat': expected a list"),
        ([], r"captions are empty"),
    ],
)
def test_captions_that_are_none_are_named(captions: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_text(SMALL, 4)(captions)
