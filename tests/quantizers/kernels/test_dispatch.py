"""An operation is a plain call where nothing looks at operations, and a custom op, with the same result, elsewhere."""

import subprocess
import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from quantizers.kernels import dispatch
from quantizers.kernels.bits import _sign_quantize, sign_quantize
from quantizers.kernels.nearest import _nearest, nearest
from quantizers.kernels.residual import _residual_encode, residual_errors
from quantizers.kernels.scalar import _scalar_quantize, scalar_quantize

Z_ND = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
BOOKS = list(torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1)))
LEVELS = torch.tensor([3, 3, 3, 3])
HALVES = torch.ones(4)
CALLS = {
    _nearest: lambda z_ND: nearest(z_ND, BOOKS[0]),
    _residual_encode: lambda z_ND: residual_errors(z_ND, BOOKS),
    _sign_quantize: lambda z_ND: sign_quantize(z_ND, scale=0.5, streams=2),
    _scalar_quantize: lambda z_ND: scalar_quantize(
        z_ND, torch.tensor([[-0.5, 0.5]]).expand(4, 2), LEVELS, HALVES, HALVES
    ),
}
NAMES = [operation.op._name for operation in CALLS]


@pytest.fixture
def taken(monkeypatch):
    """The way of every call since: plain or op. As in a process that has not imported torch._dynamo."""
    ways = []

    def record(operation, name, way):
        original = getattr(operation, name)
        monkeypatch.setattr(operation, name, lambda *given: ways.append(way) or original(*given))

    for operation in CALLS:
        record(operation, "function", "plain")
        record(operation, "op", "op")
    monkeypatch.setattr(dispatch, "_COMPILER", "no such module")
    return ways


def equal(ours, theirs):
    ours, theirs = ([x] if isinstance(x, torch.Tensor) else x for x in (ours, theirs))
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("call", CALLS.values(), ids=NAMES)
@pytest.mark.parametrize("autocast", [False, True])
def test_both_ways_give_the_same_bits(taken, monkeypatch, call, autocast):
    z_ND = Z_ND.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = call(z_ND)
        monkeypatch.setattr(dispatch, "_watched", lambda _: True)
        op = call(z_ND)
    assert taken == ["plain", "op"]
    assert equal(plain, op)
    assert not any(x.requires_grad for x in ([plain] if isinstance(plain, torch.Tensor) else plain))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit.trace:FutureWarning")
@pytest.mark.parametrize("call", CALLS.values(), ids=NAMES)
def test_whatever_looks_at_operations_sees_the_op(taken, monkeypatch, call):
    call(Z_ND)
    assert taken == ["plain"]
    with FlopCounterMode(display=False):
        call(Z_ND)
    call(Z_ND.as_subclass(type("Marked", (torch.Tensor,), {})).requires_grad_())
    torch.jit.trace(call, Z_ND, check_trace=False)
    assert set(taken[1:]) == {"op"}
    graph = make_fx(call)(Z_ND).graph
    assert set(taken[1:]) == {"op"}
    assert any("quantizers." in str(node.target) for node in graph.nodes)
    monkeypatch.undo()
    assert dispatch._COMPILER in sys.modules  # make_fx imports it
    assert dispatch._watched([Z_ND])


def test_a_process_that_quantizes_does_not_import_what_compiles():
    code = """
import sys, torch
from quantizers import FSQ, LFQ, VQ, Residual
for quantizer in (FSQ(), LFQ(4), VQ(16, 4), Residual(VQ(16, 4), 2)):
    quantizer.eval()(torch.zeros(1, 2, 4))
assert "torch._dynamo" not in sys.modules
same = torch.library.custom_op("test::same", torch.Tensor.clone, mutates_args=(), schema="(Tensor x) -> Tensor")
same(torch.zeros(1))
assert "torch._dynamo" in sys.modules, "torch no longer imports it for a custom op: `Operation` can go"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
