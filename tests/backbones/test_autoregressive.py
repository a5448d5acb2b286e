"""The autoregressive generator: exactness first, then that it learns, and that it learns from the condition."""

import math

import pytest
import torch

from backbones import Autoregressive, AutoregressiveConfig, text
from tokenizers_mm.api import Batch, Tokens, TokenSpec

RASTER = TokenSpec(image_size=(8, 8), grid=(2, 3), dim=4, codes=(7,))
STREAMS = TokenSpec(image_size=(8, 8), grid=(2, 2), dim=4, codes=(5, 9, 3))
SEQUENCE = TokenSpec(image_size=(8, 8), grid=(5,), dim=4, codes=(6,), layout="sequence")
SCALES = TokenSpec(image_size=(8, 8), grid=((1, 1), (2, 2)), dim=4, codes=(6,), layout="scales")
CAPTIONS = ["red cat", "a blue dog", ""]


def build(spec=RASTER, codebook=None, **options):
    """A small generator whose weights are all random, so that everything has an effect."""
    torch.manual_seed(0)
    model = Autoregressive(AutoregressiveConfig(width=32, depth=2, heads=2, **options), spec, codebook)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def tokens_of(spec, count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    streams = [torch.randint(0, size, (count, spec.length), generator=generator) for size in spec.codes]
    return Tokens(codes_BNS=torch.stack(streams, -1), grid=spec.grid)


@pytest.mark.parametrize("spec", [RASTER, STREAMS, SEQUENCE, SCALES], ids=["raster", "streams", "sequence", "scales"])
def test_no_symbol_sees_itself_or_a_later_one(spec):
    model, codes = build(spec), tokens_of(spec).codes_BNS
    before = model.image_logits(codes, CAPTIONS)
    for position in range(spec.length):
        for stream, size in enumerate(spec.codes):
            other = codes.clone()
            other[:, position, stream] = (other[:, position, stream] + 1) % size
            for s, (a, b) in enumerate(zip(before, model.image_logits(other, CAPTIONS), strict=True)):
                first_free = position + (s <= stream)
                assert torch.equal(a[:, :first_free], b[:, :first_free])
                last = position == spec.length - 1
                assert (last and s <= stream) or not torch.equal(a[:, first_free:], b[:, first_free:])


def test_a_byte_sees_the_whole_image_and_no_later_byte():
    model, codes = build(), tokens_of(RASTER).codes_BNS
    ids, _ = text.encode(CAPTIONS, 64)
    before = model.text_logits(codes, ids)
    later = ids.clone()
    later[:, 4] = 65
    after = model.text_logits(codes, later)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])
    codes[:, -1] = (codes[:, -1] + 1) % 7
    assert (model.text_logits(codes, ids)[:, 0] != before[:, 0]).any()


@pytest.mark.parametrize("spec", [RASTER, STREAMS, SCALES], ids=["raster", "streams", "scales"])
def test_cached_steps_equal_the_full_forward(spec):
    model, codes = build(spec), tokens_of(spec).codes_BNS
    prefix, valid = model.condition(CAPTIONS)
    inputs = model._image_inputs(codes)
    full = model._run(prefix, valid, inputs)
    advance = model._stepper(prefix, valid, inputs.shape[1], use_cache=True)
    stepped = torch.stack([advance(inputs[:, i]) for i in range(inputs.shape[1])], 1)
    torch.testing.assert_close(stepped, full, atol=1e-5, rtol=1e-5)
    for options in ({}, {"guidance": 2.5, "top_k": 4, "top_p": 0.9, "temperature": 0.8}):
        fast, slow = (model.sample(CAPTIONS, seed=3, use_cache=use, **options) for use in (True, False))
        assert torch.equal(fast.codes_BNS, slow.codes_BNS)


def test_greedy_sampling_follows_the_teacher_forced_logits():
    model = build(STREAMS)
    codes = model.sample(CAPTIONS, temperature=0).check(STREAMS).codes_BNS
    for stream, logits in enumerate(model.image_logits(codes, CAPTIONS)):
        assert torch.equal(codes[..., stream], logits.argmax(-1))
    assert torch.equal(model.sample(CAPTIONS, seed=1, top_k=1).codes_BNS, codes)
    assert torch.equal(model.sample(CAPTIONS, seed=1, top_p=1e-9).codes_BNS, codes)


def test_greedy_captions_follow_the_teacher_forced_logits():
    model, tokens = build(), tokens_of(RASTER)
    with torch.no_grad():
        model.byte_head.bias[:128] += 3.0
    ids = torch.full((3, 1), text.BEGIN)
    for _ in range(6):
        ids = torch.cat([ids, model.text_logits(tokens.codes_BNS, ids)[:, -1:].argmax(-1)], 1)
    assert model.caption(tokens, max_length=6) == text.decode(ids)


def test_padding_of_other_captions_changes_nothing():
    model, codes = build(), tokens_of(RASTER).codes_BNS
    together = model.image_logits(codes, CAPTIONS)[0]
    for row, caption in enumerate(CAPTIONS):
        alone = model.image_logits(codes[row : row + 1], [caption])[0]
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", [RASTER, STREAMS], ids=["raster", "streams"])
def test_the_loss_does_not_depend_on_how_a_batch_is_split(spec):
    model, tokens, captions = build(spec), tokens_of(spec, 4), ["a", "bb cc", "longer caption", ""]
    whole = model.loss(Batch(tokens, captions))
    parts = [model.loss(Batch(tokens[i : i + 2], captions[i : i + 2])) for i in (0, 2)]
    assert set(whole) == {"image", "text"}
    for name, value in whole.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)


def test_the_loss_is_the_mean_likelihood():
    model, tokens = build(STREAMS, text_weight=0.5), tokens_of(STREAMS)
    logits = model.image_logits(tokens.codes_BNS, CAPTIONS)
    picked = [part.log_softmax(-1).gather(-1, tokens.codes_BNS[..., s : s + 1]) for s, part in enumerate(logits)]
    loss = model.loss(Batch(tokens, CAPTIONS))
    torch.testing.assert_close(loss["image"], -torch.cat(picked).mean())
    double = build(STREAMS, text_weight=1.0).loss(Batch(tokens, CAPTIONS))
    torch.testing.assert_close(double["text"], 2 * loss["text"])


def test_captions_are_learned_of_a_share_of_the_batch():
    tokens = tokens_of(RASTER)
    few, all_ = (build(text_share=share).loss(Batch(tokens, CAPTIONS)) for share in (0.5, 1.0))
    alone = build().loss(Batch(tokens[:2], CAPTIONS[:2]))  # half of three, rounded up
    torch.testing.assert_close(few["text"], alone["text"])
    torch.testing.assert_close(few["image"], all_["image"])
    assert not torch.isclose(few["text"], all_["text"])


def test_seeds_guidance_and_conditions_matter():
    model = build(SEQUENCE)
    first, again, other = (model.sample(CAPTIONS * 9, seed=seed).codes_BNS for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, model.sample(CAPTIONS * 9, seed=5, guidance=4.0).codes_BNS)
    null = model.sample([""] * 27, seed=5).codes_BNS
    assert torch.equal(null, model.sample(CAPTIONS * 9, seed=5, guidance=0.0).codes_BNS)


def test_class_labels_are_a_condition():
    model, tokens = build(classes=4), tokens_of(RASTER)
    labels = torch.tensor([0, 3, 1])
    assert set(model.loss(Batch(tokens, labels_B=labels))) == {"image"}
    assert model.sample(labels, seed=0, guidance=2.0).check(RASTER).grid == (2, 3)
    swapped = model.image_logits(tokens.codes_BNS, labels.flip(0))[0]
    assert not torch.allclose(swapped, model.image_logits(tokens.codes_BNS, labels)[0])
    with pytest.raises(ValueError, match="without captions"):
        model.caption(tokens)


def test_the_codebook_makes_equal_vectors_alike():
    codebook = torch.randn(7, 3)
    codebook[5] = codebook[2]
    model = build(codebook=codebook)
    with torch.no_grad():
        model.codes.table.weight.zero_()
    embedded = model.codes(torch.tensor([[[2], [5], [3]]]))[0, :, 0]
    assert torch.equal(embedded[0], embedded[1])
    assert not torch.allclose(embedded[0], embedded[2])


def overfit(captions):
    """Train on images that are a function of a digit; captions are given. Losses of the last step, evaluated."""
    torch.manual_seed(0)
    digits = torch.arange(16) % 4
    codes = torch.stack([digits, (digits + 1) % 4, digits * 0 + 3, 3 - digits], 1)[..., None]
    tokens = Tokens(codes_BNS=codes)
    spec = TokenSpec(image_size=(4, 4), grid=(4,), dim=1, codes=(4,), layout="sequence")
    config = AutoregressiveConfig(width=32, depth=2, heads=2, drop_condition=0.0)
    model = Autoregressive(config, spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(120):
        texts = captions(digits, generator)
        loss = model.loss(Batch(tokens, texts))
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()
    model.eval()
    true = [f"digit {d}" for d in digits.tolist()]
    return model, tokens, true, {name: value.item() for name, value in model.loss(Batch(tokens, true)).items()}


def test_it_learns_images_and_captions():
    model, tokens, captions, loss = overfit(lambda digits, _: [f"digit {d}" for d in digits.tolist()])
    unigram = 3 / 4 * math.log(4)  # three of the four positions are uniform over four codes, one is constant
    assert loss["image"] < 0.1 * unigram
    assert model.caption(tokens) == captions
    assert torch.equal(model.sample(captions, temperature=0).codes_BNS, tokens.codes_BNS)


def test_shuffled_captions_tell_it_nothing():
    def shuffled(digits, generator):
        return [f"digit {d}" for d in torch.randint(0, 4, digits.shape, generator=generator).tolist()]

    model, tokens, captions, loss = overfit(shuffled)
    assert loss["image"] > 0.9 * math.log(4) / 4  # the first code stays a guess, the others follow from it
    hits = [a == b for a, b in zip(model.caption(tokens), captions, strict=True)]
    assert sum(hits) <= 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: m.loss(Batch(t, ["a", "b"])), "2 captions for 3 images"),
        (lambda m, t: m.loss(Batch(t)), "captions are empty"),
        (lambda m, t: m.loss(Batch(t[:0], [])), "the batch holds no images"),
        (lambda m, t: m.loss(Batch(Tokens(codes_BNS=t.codes_BNS + 6, grid=t.grid), CAPTIONS)), "vocabulary is 0..6"),
        (lambda m, t: m.loss(Batch(Tokens(codes_BNS=t.codes_BNS), CAPTIONS)), r"grid \(6,\).*built for \(2, 3\)"),
        (lambda m, t: m.loss(Batch(t, ["x" * 129, "", ""])), "has 129 bytes, the limit is 128"),
        (lambda m, t: m.sample([]), "captions are empty"),
        (lambda m, t: m.sample("red"), "wrap it in a list"),
        (lambda m, t: m.sample(torch.tensor([1])), r"reads captions \(classes=0\)"),
        (lambda m, t: m.sample(CAPTIONS, temperature=-1.0), r"temperature=-1\.0"),
        (lambda m, t: m.sample(CAPTIONS, top_k=0), "top_k=0"),
        (lambda m, t: m.sample(CAPTIONS, top_p=1.5), r"top_p=1\.5"),
        (lambda m, t: m.sample(CAPTIONS, guidance=-1), "guidance=-1"),
        (lambda m, t: m.caption(t, max_length=0), "max_length=0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(build(), tokens_of(RASTER))


def test_bad_labels_are_refused():
    model, tokens = build(classes=3), tokens_of(RASTER)
    with pytest.raises(ValueError, match=r"\[0, 3\]:.*generator.*classes 0..2"):
        model.loss(Batch(tokens, labels_B=torch.tensor([0, 3, 1])))
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        model.loss(Batch(tokens, labels_B=torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="carries no labels_B"):
        model.loss(Batch(tokens, CAPTIONS))
    with pytest.raises(ValueError, match="reads class labels"):
        model.sample(CAPTIONS)


def test_bad_specs_and_codebooks_are_refused():
    with pytest.raises(ValueError, match=r"use backbones\.Flow"):
        Autoregressive(AutoregressiveConfig(), TokenSpec(image_size=(8, 8), grid=(2, 2), dim=4))
    with pytest.raises(ValueError, match=r"codebook_VD.*shape \(5, 2\): expected.*7"):
        Autoregressive(AutoregressiveConfig(), RASTER, torch.randn(5, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_weight": -1.0}, r"text_weight=-1\.0"),
        ({"text_share": 0.0}, r"text_share=0\.0"),
        ({"text_share": 1.5}, r"text_share=1\.5"),
        ({"classes": -1}, "classes=-1"),
        ({"drop_condition": 1.5}, r"drop_condition=1\.5"),
        ({"max_text": 0}, "max_text=0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoregressiveConfig(**options)


def test_without_captions_every_parameter_is_trained():
    model, tokens = build(text_weight=0.0, codebook=torch.randn(7, 3)), tokens_of(RASTER)
    losses = model.loss(Batch(tokens, CAPTIONS))
    assert set(losses) == {"image"}
    losses["image"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
