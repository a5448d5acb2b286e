"""Tokenizers are timed on all cores; the other implementation is diffusers' AutoencoderKL on the same weights."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _all_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)
