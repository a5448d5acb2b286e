"""Autoregressive sampling with and without the key-value cache."""

import pytest
import torch

from backbones import Autoregressive, AutoregressiveConfig
from tokenizers_mm.api import TokenSpec

CAPTION = "small red circle top left"


def logits_of(model, monkeypatch, captions, use_cache):
    """Codes that a call draws, and the logits [L, B, V] it drew them from."""
    seen, original = [], model._code_logits
    with monkeypatch.context() as patch:
        patch.setattr(model, "_code_logits", lambda h, stream: seen.append(original(h, stream)) or seen[-1])
        tokens = model.sample(captions, seed=0, use_cache=use_cache)
    return tokens.codes_BNS, torch.stack(seen)


@pytest.mark.parametrize(("side", "batch"), [(4, 16), (16, 1)])
def test_cache(compare, monkeypatch, side, batch):
    spec = TokenSpec(image_size=(8 * side, 8 * side), grid=(side, side), dim=4, codes=(1000,))
    model = Autoregressive(AutoregressiveConfig(), spec).eval()
    for parameter in model.parameters():  # else the head starts at zero, and so would all logits
        torch.nn.init.normal_(parameter, std=0.15)
    captions = [CAPTION] * batch
    codes, logits = logits_of(model, monkeypatch, captions, True)
    plain_codes, plain_logits = logits_of(model, monkeypatch, captions, False)
    assert float(plain_logits.std()) > 0.1
    assert torch.equal(codes, plain_codes)
    torch.testing.assert_close(logits, plain_logits, atol=1e-4, rtol=0)
    compare(
        f"sampling {batch} x {spec.length} tokens, width 128, depth 4",
        {
            "cached": lambda: model.sample(captions, seed=0),
            "uncached": lambda: model.sample(captions, seed=0, use_cache=False),
        },
        rounds=5,
    )
