"""Tables of key names: their language, and that each table of a family is read and written key by key."""

import pytest
import torch

from tokenizers_mm.checkpoints.families import Names, readers
from tokenizers_mm.weights import CheckpointError


def renamed(names, *keys):
    """Our names of some keys, tensors aside."""
    state = {key: torch.tensor(float(i)) for i, key in enumerate(keys)}
    ours = names.read(state)
    assert {float(value) for value in ours.values()} == {float(value) for value in state.values()}
    back = {float(value): key for key, value in ours.items()}
    return [back[float(i)] for i in range(len(keys))]


@pytest.mark.parametrize(
    ("table", "theirs", "ours"),
    [
        ("a.*  b.*", ["a.x.y"], ["b.x.y"]),
        ("*.conv.*  *.*", ["a.b.conv.w"], ["a.b.w"]),
        ("a.{i}.{j}.*  b.{j}.{i}.*", ["a.3.12.w"], ["b.12.3.w"]),
        ("a.{i}.*  b.{i+1}.*", ["a.0.w", "a.9.w"], ["b.1.w", "b.10.w"]),
        ("a.{-i}.*  b.{i}.*", ["a.0.w", "a.1.w", "a.2.w"], ["b.2.w", "b.1.w", "b.0.w"]),
        ("a.{-i}.*  b.{i}.*\nc.{-i}.*  d.{i}.*", ["a.0.w", "c.2.w"], ["b.2.w", "d.0.w"]),
        ("{enc|dec}.in.*  {enc|dec}.first.*", ["enc.in.w", "dec.in.w"], ["enc.first.w", "dec.first.w"]),
        ("x.{layer}.*  y.{layer}.*", ["x.to_q.w", "x.to_out.0.w", "x.norm.w"], ["y.q.w", "y.proj.w", "y.norm.w"]),
        ("x.[main.]conv.*  y.*", ["x.main.conv.w"], ["y.w"]),
        ("special.w  b.special\n*  *", ["special.w", "other.w"], ["b.special", "other.w"]),
    ],
)
def test_what_a_table_can_say(table, theirs, ours):
    names = Names(table, layer="to_q=q to_out.0=proj norm")
    assert renamed(names, *theirs) == ours
    state = {key: torch.zeros(()) for key in ours}
    assert sorted(names.write(state)) == sorted(theirs)


def test_several_spellings_are_read_and_the_first_is_written():
    names = Names("a.{layer}.[more.]w  b.{layer}.w", layer="to_q=q query=q")
    assert (
        list(names.read({"a.query.w": torch.zeros(1)}))
        == list(names.read({"a.to_q.more.w": torch.zeros(1)}))
        == ["b.q.w"]
    )
    assert list(names.write({"b.q.w": torch.zeros(1)})) == ["a.to_q.more.w"]


def test_one_tensor_there_is_several_here():
    fused = torch.randn(6, 4)
    names = Names("*.qkv.*  *.{third}.*", third="to_q=q k v")
    ours = names.read({"a.qkv.weight": fused})
    assert list(ours) == ["a.q.weight", "a.k.weight", "a.v.weight"]
    assert torch.equal(torch.cat(list(ours.values())), fused)
    assert {value.untyped_storage().data_ptr() for value in ours.values()} == {fused.untyped_storage().data_ptr()}
    shuffled = dict(reversed(ours.items()))
    assert torch.equal(names.write(shuffled)["a.qkv.weight"], fused)


def test_several_tensors_there_are_one_here():
    parts = {f"a.{name}_proj.weight": torch.randn(2, 4) for name in "qkv"}
    names = Names("*.{third}.*  *.qkv.*", third="q_proj=q k_proj=k v_proj=v")
    ours = names.read(dict(reversed(parts.items())))
    assert torch.equal(ours["a.qkv.weight"], torch.cat(list(parts.values())))
    back = names.write(ours)
    assert back.keys() == parts.keys()
    assert all(torch.equal(back[key], parts[key]) for key in parts)
    del parts["a.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"file: a\.qkv\.weight: only 2 of its 3 parts"):
        names.read(parts)


@pytest.mark.parametrize(
    ("operation", "there", "here"),
    [
        ("linear", (4, 3), (4, 3, 1, 1)),
        ("linear", (4,), (4,)),
        ("pointwise", (4, 3, 1, 1), (4, 3)),
        ("gain", (4, 1, 1, 1), (4, 1, 1)),
        ("last_tap", (4, 3, 3, 5, 5), (4, 3, 5, 5)),
        ("last_tap", (4, 3, 5, 5), (4, 3, 5, 5)),
    ],
)
def test_operations(operation, there, here):
    names, tensor = Names(f"a.*  b.*  {operation}"), torch.randn(there)
    ours = names.read({"a.w": tensor})["b.w"]
    assert ours.shape == here
    assert ours.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    if operation in ("linear", "pointwise"):
        assert torch.equal(names.write({"b.w": ours})["a.w"], tensor)
    elif operation == "last_tap":
        assert torch.equal(ours, tensor[:, :, -1] if len(there) == 5 else tensor)


def test_no_key_is_lost_or_written_over():
    names = Names("a.{layer}.w  b.{layer}.w", layer="x=z y=z")
    with pytest.raises(CheckpointError, match=r"vae: a\.y\.w and another key mean b\.z\.w"):
        names.read({"a.x.w": torch.zeros(1), "a.y.w": torch.zeros(1)}, "vae")
    with pytest.raises(CheckpointError, match=r"vae: .* mean b\.z\.w"):
        names.read({"a.x.w": torch.zeros(1), "b.z.w": torch.zeros(1)}, "vae")
    assert list(names.read({"unknown.w": torch.zeros(1)})) == ["unknown.w"]
    with pytest.raises(CheckpointError, match=r"vae: unknown\.w: there is no name for it"):
        names.write({"unknown.w": torch.zeros(1)}, "vae")


def test_every_table_of_the_families_there_and_back(public_file):
    """Written back and read again, all is as it was."""
    tensors, _ = public_file
    first = [f"{name}." for reader in readers() for name in reader.first]
    prefix = next(key[: key.index(name)] for key in tensors for name in first if name in key)
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    tried = [naming for reader in readers() if (naming := reader.naming_of(state)) is not None]
    assert tried
    for naming in tried:
        ours = naming.table(state).read(state)
        known = {key: value for key, value in ours.items() if not key.startswith("bn.")}  # statistics, not parameters
        theirs = naming.table(state).write(known)
        assert len(theirs) == len([key for key in state if not key.startswith("bn.")])
        again = naming.table(theirs).read(theirs)
        assert again.keys() == known.keys()
        assert all(torch.equal(again[key], known[key]) for key in known)
