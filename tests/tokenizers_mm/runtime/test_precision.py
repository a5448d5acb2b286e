"""Precision auto: what the hardware computes in, and nothing else."""

import pytest
import torch

from tokenizers_mm.runtime.precision import computes_bfloat16, describe_precision, resolve_precision


def hardware(monkeypatch, *, avx512=False, amx=False, gpu=None):
    """Pretend to be such a machine; gpu: whether the GPU computes in bfloat16, None for no GPU."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu or including_emulation)


@pytest.mark.parametrize(
    ("machine", "device", "expected"),
    [
        ({}, "cpu", "no"),
        ({"avx512": True}, "cpu", "bf16"),
        ({"amx": True}, torch.device("cpu"), "bf16"),
        ({"gpu": True}, "cpu", "no"),
        ({"gpu": True}, "cuda:0", "bf16"),
        ({"gpu": False, "amx": True}, "cuda", "no"),  # emulated there
        ({"avx512": True}, "cuda", "no"),
        ({"avx512": True}, "mps", "no"),
    ],
)
def test_auto_is_bfloat16_where_there_is_such_arithmetic(monkeypatch, machine, device, expected):
    hardware(monkeypatch, **machine)
    assert resolve_precision("auto", device) == expected
    assert computes_bfloat16(device) == (expected == "bf16")
    for asked in ("no", "bf16", "fp16"):
        assert resolve_precision(asked, device) == asked


def test_a_torch_that_cannot_tell_means_float32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert resolve_precision("auto", "cpu") == "no"


def test_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match=r"precision='bf8': expected.*bf16, fp16"):
        resolve_precision("bf8", "cpu")


def test_it_is_said_in_one_line(monkeypatch):
    hardware(monkeypatch, gpu=True)
    assert describe_precision("auto", "cpu") == "precision: float32 (auto: this processor has no bfloat16 arithmetic)"
    assert describe_precision("auto", "cuda") == "precision: bfloat16 (auto: this GPU has bfloat16 arithmetic)"
    assert describe_precision("fp16", "cuda") == "precision: float16"
