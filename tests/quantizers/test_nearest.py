import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantizers import nearest
from quantizers.nearest import _BLOCK_BYTES


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


@pytest.mark.parametrize(
    ("rows", "size", "dim", "offset"), [(3000, 257, 16, 0), (9000, 1000, 3, 0), (500, 64, 8, 5), (1, 2, 1, 0)]
)
def test_equals_the_float64_argmin_except_at_provable_ties(rows, size, dim, offset):
    z, codebook = torch.randn(rows, dim) + offset, torch.randn(size, dim) + offset
    index = nearest(z, codebook)
    distance = torch.cdist(z.double(), codebook.double()).square()
    best, chosen = distance.min(1).values, distance.gather(1, index[:, None])[:, 0]
    # float32 error of |e|^2 / 2 - z . e, twice, for sums of dim products
    scale = z.double().norm(dim=1) * codebook.double().norm(dim=1).max() + codebook.double().square().sum(1).max() / 2
    bound = 4 * (dim + 2) * torch.finfo(torch.float32).eps * scale
    assert bool((chosen - best <= bound).all())
    exact = index == distance.argmin(1)
    assert float(exact.float().mean()) > 0.999


def test_ties_go_to_the_lowest_index():
    codebook = torch.tensor([[1.0, 0], [0, 0], [0, 0], [1, 0]])
    assert nearest(torch.tensor([[0.1, 0], [0.9, 0]]), codebook).tolist() == [1, 0]


def test_memory_is_one_block():
    z, codebook = torch.randn(20_000, 8), torch.randn(4096, 8)
    with LargestTensor() as largest:
        nearest(z, codebook)
    assert 0 < largest.bytes <= _BLOCK_BYTES < 4 * len(z) * len(codebook) / 30


def test_no_vectors_no_indices():
    assert nearest(torch.zeros(0, 3), torch.zeros(5, 3)).shape == (0,)
