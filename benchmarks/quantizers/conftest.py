"""Quantizers are timed on all cores; the other implementation is mostly vector-quantize-pytorch."""

import os

import pytest
import torch

THEIRS = "vector-quantize-pytorch"


@pytest.fixture(autouse=True)
def _all_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def theirs():
    return THEIRS


@pytest.fixture
def ties():
    """Function (a, b, z, rows, dot) that counts differing codes, after showing that each of them is a tie."""

    def count(a, b, z, rows, *, dot=False, tolerance=1e-6):
        other = (a != b).nonzero()[:, 0]
        assert len(other) <= 1e-3 * len(a)
        if dot:
            near_a, near_b = ((z[other].double() * rows[index[other]].double()).sum(1) for index in (a, b))
        else:
            near_a, near_b = ((z[other].double() - rows[index[other]].double()).norm(dim=1) for index in (a, b))
        torch.testing.assert_close(near_a, near_b, rtol=tolerance, atol=tolerance)
        return len(other)

    return count
