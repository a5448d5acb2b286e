from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from tokenizers_mm.measure.protocol import Measurement, Protocol


def test_protocol_round_trips_and_tells_differences() -> None:
    protocol = Protocol(reference="photographs", resize="bicubic", samples=12, posterior="mode", ema=True)
    assert Protocol.from_json(protocol.to_json()) == protocol
    assert replace(protocol, rounding="truncated").to_json() != protocol.to_json()


def test_bad_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match="rounding='ceil': expected one of rounded, truncated, float"):
        Protocol(reference="x", rounding="ceil")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="posterior='mean': expected one of none, mode, sample"):
        Protocol(reference="x", posterior="mean")  # type: ignore[arg-type]
    for text in ("[]", "{}", '{"reference": "x", "colour": "red"}'):
        with pytest.raises(ValueError, match="expected a JSON object with keys among"):
            Protocol.from_json(text)


@pytest.mark.parametrize(
    ("value", "text"), [(27.4944, "27.49"), (0.84127, "0.8413"), (13312.0, "13,312"), (math.inf, "inf"), (0.0, "0")]
)
def test_values_are_printed_for_reading(value: float, text: str) -> None:
    assert Measurement("x", value, "", Protocol(reference="y")).text == text


def test_records_are_json_even_when_infinite() -> None:
    record = Measurement("PSNR", math.inf, "dB", Protocol(reference="y"), "exact").record()
    assert json.loads(json.dumps(record, allow_nan=False))["value"] == "inf"
    assert record["protocol"]["reference"] == "y"
