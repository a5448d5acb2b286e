"""No step of a training reads a value back: a device would have to finish all its work first.

The meta device has no values, so whoever reads one there fails. That is how these tests see it.
"""

import pytest
import torch

from backbones import build
from tokenizers_mm.api import Batch, Tokens, TokenSpec
from tokenizers_mm.data.images import Preprocess
from tokenizers_mm.store import Row, StoreWriter, TokenDataset

CODES = TokenSpec(image_size=(8, 8), grid=(2, 2), dim=4, codes=(5, 9))
LATENTS = TokenSpec(image_size=(8, 8), grid=(2, 2), dim=4)
OPTIONS = {"width": 16, "depth": 1, "heads": 2}
GENERATORS = {
    "captions to codes": ("autoregressive", {}, CODES),
    "classes to codes": ("autoregressive", {"classes": 3}, CODES),
    "captions to latents": ("flow", {}, LATENTS),
    "classes to latents": ("flow", {"classes": 3}, LATENTS),
}
NO_VALUE = (RuntimeError, NotImplementedError)


def tokens_of(spec):
    if spec.discrete:
        return Tokens(codes_BNS=torch.stack([torch.randint(size, (3, 4)) for size in spec.codes], -1), grid=(2, 2))
    return Tokens(latents_BND=torch.randn(3, 4, 4), grid=(2, 2))


@pytest.fixture(params=GENERATORS)
def case(request, tmp_path):
    """A generator in training on the meta device, and a batch of a store on the CPU."""
    kind, options, spec = GENERATORS[request.param]
    with StoreWriter(tmp_path, spec, "f", Preprocess(8, 4)) as writer:
        writer.write_shard(0, tokens_of(spec), [Row(str(i), caption=f"image {i}", label=i) for i in range(3)])
    generator = build(kind, OPTIONS | options, spec).to("meta").train()
    return generator, TokenDataset(tmp_path).batch(range(3))


def step(generator, batch):
    sum(generator.loss(batch).values()).backward()


def test_a_step_on_a_batch_of_a_store_waits_for_nothing(case):
    generator, batch = case
    assert batch.label_range == (0, 2)
    step(generator, batch.to("meta"))
    assert any(parameter.grad is not None for parameter in generator.parameters())


def test_who_brings_tokens_or_labels_of_his_own_has_them_read(case):
    """The control: what was not looked at is, whatever the device."""
    generator, batch = case
    unseen = Batch(tokens_of(generator.spec), batch.captions, batch.labels_B, batch.label_range)
    with pytest.raises(NO_VALUE, match="meta"):
        step(generator, unseen.to("meta"))
    if generator.config.classes:
        with pytest.raises(NO_VALUE, match="meta"):
            step(generator, Batch(batch.tokens, batch.captions, batch.labels_B).to("meta"))


def test_labels_of_a_store_are_still_refused_where_there_are_not_so_many_classes(case):
    generator, batch = case
    if not generator.config.classes:
        step(generator, batch.to("meta"))
        return
    few = build(generator.kind, OPTIONS | {"classes": 2}, generator.spec)
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match=r"\[0, 2\].*0\.\.1"):
            few.to(device).loss(batch.to(device))


def test_labels_to_sample_are_read_where_they_come_in():
    generator = build("flow", OPTIONS | {"classes": 3}, LATENTS)
    with pytest.raises(ValueError, match=r"\[1, 3\].*0\.\.2"):
        generator.sample(torch.tensor([1, 3]))
    with pytest.raises(NO_VALUE, match="meta"):
        generator.to("meta").sample(torch.tensor([1, 2], device="meta"))


def test_codes_out_of_range_are_a_value_error_in_a_step():
    generator = build("autoregressive", OPTIONS, CODES)
    bad = tokens_of(CODES)
    bad.data[1, 2, 1] = 9
    with pytest.raises(ValueError, match=r"stream 1 lie in \[\d, 9\].*0\.\.8"):
        step(generator, Batch(bad, ["a", "b", "c"]))
