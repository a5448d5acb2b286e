"""Training steps are timed on one thread, with gradients."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_gradients():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.enable_grad():
        yield
    torch.set_num_threads(before)
