"""Digests of objects: equal for equal state, whatever the address, the order or the device; others for any change."""

import copy
import functools
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tokenizers_mm.saving.object_state import object_digest


class Holder:
    def __init__(self, **given):
        vars(self).update(given)


class Slotted:
    __slots__ = ("__hidden", "table")

    def __init__(self, table, hidden):
        self.table, self.__hidden = table, hidden


@dataclass(frozen=True)
class Options:
    size: int = 3
    names: tuple[str, ...] = ("a",)
    more: dict = field(default_factory=dict)


class Mode(Enum):
    MEAN = 1
    MAX = 2


class Net(nn.Module):
    def __init__(self, scale=2.0):
        super().__init__()
        self.inner, self.scale = nn.Linear(3, 2), scale
        self.register_buffer("table", torch.arange(3.0), persistent=False)


def net(**change):
    torch.manual_seed(0)
    made = Net(**change)
    return made


def closure(captured):
    return lambda x: x + captured


# Every pair differs in one thing that makes another tokenizer of it.
PAIRS = {
    "number": (3, 4),
    "type of a number": (1, 1.0),
    "truth": (True, 1),
    "nothing": (None, "None"),
    "text": ("a", "b"),
    "bytes": (b"a", "a"),
    "path": (Path("a"), Path("b")),
    "list": ([1, [2, 3]], [1, [2, 4]]),
    "nesting": ([[1], 2], [1, [2]]),
    "order of a list": ([1, 2], [2, 1]),
    "list or tuple": ([1], (1,)),
    "deque": (deque([1]), deque([2])),
    "set": ({"a", "b"}, {"a", "c"}),
    "value of a dictionary": ({"a": 1}, {"a": 2}),
    "key of a dictionary": ({"a": 1}, {"b": 1}),
    "values swapped": ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    "enumeration": (Mode.MEAN, Mode.MAX),
    "dataclass": (Options(), Options(names=("a", "b"))),
    "slot": (Slotted([1], 2), Slotted([2], 2)),
    "private slot": (Slotted([1], 2), Slotted([1], 3)),
    "tensor": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
    "shape of a tensor": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "dtype of a tensor": (torch.zeros(2), torch.zeros(4, dtype=torch.bfloat16)),
    "bits of a tensor": (torch.zeros(2).bfloat16(), torch.full((2,), 2.0**-130).bfloat16()),
    "sparse tensor": (torch.eye(2).to_sparse(), torch.zeros(2, 2).to_sparse()),
    "array": (np.zeros(3), np.array([0, 0, 1.0])),
    "dtype of an array": (np.zeros(2, np.float32), np.zeros(2, np.int32)),
    "number of numpy": (np.float32(1), np.float32(2)),
    "array of objects": (np.array([1, "a"], object), np.array([1, "b"], object)),
    "array of texts": (np.array(["a"]), np.array(["b"])),
    "empty arrays": (np.zeros((0, 3)), np.zeros((0, 4))),
    "class": (Holder(a=1), type("Holder2", (Holder,), {})(a=1)),
    "name of an attribute": (Holder(a=1), Holder(b=1)),
    "function": (torch.relu, torch.sigmoid),
    "function of ours": (net, closure),
    "captured value": (closure(1), closure(2)),
    "partial": (functools.partial(closure, 1), functools.partial(closure, 2)),
    "bound method": (Options(3).__repr__, Options(4).__repr__),
    "option of a module": (net(), net(scale=3.0)),
    "training of a module": (nn.Dropout(0.1), nn.Dropout(0.2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_change_gives_another_digest(name):
    first, second = PAIRS[name]
    assert object_digest(Holder(x=first)) == object_digest(Holder(x=first))
    assert object_digest(Holder(x=first)) != object_digest(Holder(x=second))


@pytest.mark.parametrize("name", PAIRS)
def test_a_copy_has_the_same_digest(name):
    for value in PAIRS[name]:
        if name not in ("captured value", "partial"):  # copies of functions are the functions
            assert object_digest(Holder(x=copy.deepcopy(value))) == object_digest(Holder(x=value))


def test_what_does_not_count():
    one, other = Holder(a=1, b=2), Holder(b=2, a=1)
    assert object_digest(one) == object_digest(other)
    assert object_digest({"a": 1, 2: "b"}) == object_digest({2: "b", "a": 1})
    assert object_digest(Holder(x=torch.device("cpu"))) == object_digest(Holder(x=torch.device("cuda:1")))
    shared = [1]
    assert object_digest([shared, shared]) == object_digest([[1], [1]])
    strided = torch.arange(6.0).view(2, 3).t()
    assert object_digest(strided) == object_digest(strided.contiguous())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_modules_count_by_everything_they_hold():
    before = object_digest(net())
    assert object_digest(net().eval()) == before  # mode is not state
    hooked = net()
    hooked.register_forward_hook(lambda *_: None)
    hooked.requires_grad_(False).compile()
    assert object_digest(hooked) == before
    for path in ("inner.weight", "inner.bias", "table"):
        changed = net()
        functools.reduce(getattr, path.split("."), changed).data[0] += 1
        assert object_digest(changed) != before
    scripted = [torch.jit.script(nn.Linear(2, 2)) for _ in range(2)]
    assert object_digest(scripted[0]) != object_digest(scripted[1])
    scripted[1].load_state_dict(scripted[0].state_dict())
    assert object_digest(scripted[0]) == object_digest(scripted[1])


def test_a_compiled_module_is_the_module():
    assert object_digest(Holder(net=torch.compile(net()))) == object_digest(Holder(net=net()))
    assert object_digest(Holder(net=torch.compile(net(scale=1.0)))) != object_digest(Holder(net=net()))
    assert object_digest(torch.compile(closure(1))) == object_digest(closure(1)) != object_digest(closure(2))


def test_loops_end():
    one, other, changed = Holder(a=1), Holder(a=1), Holder(a=2)
    for holder in (one, other, changed):
        holder.me, holder.child = holder, Holder(parent=holder)
    assert object_digest(one) == object_digest(other) != object_digest(changed)


def test_what_has_a_digest_of_its_own():
    inner = Options(3)
    by_size = {3: "three", 4: "four"}

    def known(value):
        return by_size[value.size] if isinstance(value, Options) else None

    assert object_digest(Holder(x=inner), known) == object_digest(Holder(x=Options(3, ("b",))), known)
    assert object_digest(Holder(x=inner), known) != object_digest(Holder(x=Options(4)), known)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"lock": threading.Lock()}, r"x\['lock'\] is a _thread.lock"),
        (OrderedDict(a=[1, iter(())]), r"x\['a'\]\[1\] is a builtins.tuple_iterator"),
        (Options(more={"f": memoryview(b"")}), r"x.more\['f'\] is a builtins.memoryview"),
        (torch.zeros(2, device="meta"), r"x is a tensor on the meta device"),
    ],
)
def test_what_cannot_be_seen_is_named(value, where):
    with pytest.raises(ValueError, match=rf"^Holder\.{where}"):
        object_digest(Holder(x=value))
