import json
import os
import resource
import shutil

import pytest
import torch

from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.data.images import Preprocess
from tokenizers_mm.data.sources import Draw
from tokenizers_mm.store.dataset import Inputs, Quarantined, Row, StoreMismatch, StoreWriter, TokenDataset, verify
from tokenizers_mm.store.shards import Shard, read_record, write_record

SPEC = TokenSpec(image_size=(32, 32), grid=(2, 2), dim=3, codes=(1000,))
LATENTS = TokenSpec(image_size=(32, 32), grid=(2, 2), dim=3)
PLAIN = Preprocess(32, 16)


def _codes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Tokens(codes_BNS=torch.randint(0, 1000, (count, 4, 1), generator=generator), grid=(2, 2))


def _rows(count, prefix="k"):
    return [Row(f"{prefix}{i}", f"caption {i}", i, f"/src/{i}", "ab" * 32) for i in range(count)]


def _store(path, sizes=(3, 4)):
    with StoreWriter(path, SPEC, "finger-a", PLAIN) as writer:
        for index, size in enumerate(sizes):
            writer.write_shard(index, _codes(size, index), _rows(size, f"s{index}-"))
    return path


def test_random_access_returns_what_was_written(tmp_path):
    data = TokenDataset(_store(tmp_path / "store"))
    written = torch.cat([_codes(3, 0).data, _codes(4, 1).data])
    order = [6, 0, 3, 3, 2]
    batch = data.batch(order)
    assert torch.equal(batch.tokens.codes_BNS, written[order])
    assert batch.tokens.grid == (2, 2)
    assert batch.captions == [data.captions[i] for i in order] == [f"caption {i}" for i in (3, 0, 0, 0, 2)]
    assert batch.labels_B.tolist() == [3, 0, 0, 0, 2]
    assert data.keys == ["s0-0", "s0-1", "s0-2", "s1-0", "s1-1", "s1-2", "s1-3"]
    assert len(data) == 7
    assert data.spec == SPEC
    assert torch.equal(data.batch([Draw(6, 1), Draw(0, 2)]).tokens.codes_BNS, written[[6, 0]])
    assert torch.equal(data.batch(torch.arange(7)).tokens.codes_BNS, written)
    with pytest.raises(ValueError, match=r"items 0\.\.7 asked for, 0\.\.6 are there"):
        data.batch([0, 7])


def test_latents_travel_as_bfloat16(tmp_path):
    latents = torch.randn(5, 4, 3)
    with StoreWriter(tmp_path, LATENTS, "f", PLAIN) as writer:
        writer.write_shard(0, Tokens(latents_BND=latents, grid=(2, 2)), [Row(str(i)) for i in range(5)])
    data = TokenDataset(tmp_path)
    batch = data.batch([4, 1])
    assert batch.tokens.latents_BND.dtype == torch.float32
    assert torch.equal(batch.tokens.latents_BND, latents[[4, 1]].bfloat16().float())
    assert data.captions == batch.captions == ()
    assert data.labels_I is batch.labels_B is data.codebook_VD is None


def test_several_streams_are_packed_to_the_bit(tmp_path):
    spec = TokenSpec(image_size=(32, 32), grid=(7,), dim=3, codes=(1000, 2, 17), layout="sequence")
    codes = torch.stack([torch.randint(0, size, (6, 7)) for size in spec.codes], -1)
    with StoreWriter(tmp_path, spec, "f", PLAIN) as writer:
        writer.write_shard(0, Tokens(codes_BNS=codes), [Row(str(i)) for i in range(6)])
    assert torch.equal(TokenDataset(tmp_path).batch(range(6)).tokens.codes_BNS, codes)
    assert (tmp_path / "00000.safetensors").stat().st_size < 6 * 14 + 200


def test_tokens_that_are_none_of_the_spec_are_refused_where_they_are_read(tmp_path):
    """Ten bits hold codes to 1023; the vocabulary ends at 999."""
    with StoreWriter(tmp_path, SPEC, "f", PLAIN) as writer:
        writer.write_shard(0, _codes(2), _rows(2))
    tokens = _codes(2)
    tokens.data[1, 0] = 1000
    Shard(tmp_path, 1, SPEC).write(tokens, [Row("good"), Row("bad")])  # which checks nothing
    data = TokenDataset(tmp_path)
    batch = data.batch([0, 2])
    assert batch.tokens.checked == SPEC.codes
    with pytest.raises(ValueError, match=rf"{tmp_path}.*1000\].*0\.\.999.*tmm verify"):
        data.batch([0, 3])
    assert "00001.safetensors" in verify(tmp_path).problems[0]


def test_batches_know_the_range_of_their_labels(tmp_path):
    with StoreWriter(tmp_path, SPEC, "f", PLAIN) as writer:
        writer.write_shard(0, _codes(3), [Row("a", label=2), Row("b"), Row("c", label=7)])
    data = TokenDataset(tmp_path)
    assert [data.batch(items).label_range for items in ([0, 2], [1, 2], [0], [])] == [(2, 7), (-1, 7), (2, 2), None]


def test_partly_known_captions_and_labels_say_so(tmp_path):
    with StoreWriter(tmp_path, SPEC, "f", PLAIN) as writer:
        writer.write_shard(0, _codes(2), [Row("a", caption="x"), Row("b", label=7)])
    data = TokenDataset(tmp_path)
    assert data.captions == ["x", ""]
    assert data.labels_I.tolist() == [-1, 7]


def test_codebook_travels_with_the_tokens(tmp_path):
    table = torch.randn(1000, 3)
    with StoreWriter(tmp_path, SPEC, "f", PLAIN, codebook_VD=table) as writer:
        writer.write_shard(0, _codes(1), _rows(1))
    assert torch.equal(TokenDataset(tmp_path).codebook_VD, table)
    with pytest.raises(ValueError, match=r"codebook_VD.*\(10, 3\): codes=\(1000,\), dim=3.*stream"):
        StoreWriter(tmp_path / "other", SPEC, "f", PLAIN, codebook_VD=table[:10])


def test_any_text_is_a_key_and_never_a_file_name(tmp_path):
    keys = ["ünï/cödé 🦊", "line\nbreak\ttab", "../../escape", "x" * 300, "/etc/passwd", " ", "'\"\\;\x00"]
    with StoreWriter(tmp_path / "store", SPEC, "f", PLAIN) as writer:
        writer.write_shard(0, _codes(len(keys)), [Row(key, caption=key) for key in keys])
    data = TokenDataset(tmp_path / "store")
    assert data.keys == data.captions == keys
    assert sorted(os.listdir(tmp_path)) == ["store"]
    assert sorted(os.listdir(tmp_path / "store")) == [
        ".lock",
        "00000.json",
        "00000.parquet",
        "00000.safetensors",
        "manifest.json",
    ]


@pytest.mark.parametrize(("key", "message"), [("", "key '' is empty"), ("\udcff", "is not valid UTF-8")])
def test_impossible_keys_are_refused(tmp_path, key, message):
    with StoreWriter(tmp_path, SPEC, "f", PLAIN) as writer, pytest.raises(ValueError, match=message):
        writer.write_shard(0, _codes(1), [Row(key)])


def test_duplicate_keys_are_refused_within_and_across_shards_and_runs(tmp_path):
    _store(tmp_path)
    with StoreWriter(tmp_path, SPEC, "finger-a", PLAIN) as writer:
        with pytest.raises(ValueError, match=r"'twice' occurs.*every"):
            writer.write_shard(2, _codes(2), [Row("twice"), Row("twice")])
        with pytest.raises(ValueError, match="key 's1-3' occurs more than once"):
            writer.write_shard(2, _codes(1), [Row("s1-3")])
        writer.write_shard(2, _codes(1), [Row("new")])
        with pytest.raises(ValueError, match="key 'new' occurs more than once"):
            writer.write_shard(3, _codes(1), [Row("new")])
    assert verify(tmp_path).ok


def test_a_copied_shard_is_found_by_its_keys(tmp_path):
    _store(tmp_path, (2,))
    for suffix in ("safetensors", "parquet"):
        shutil.copy(tmp_path / f"00000.{suffix}", tmp_path / f"00001.{suffix}")
    write_record(tmp_path / "00001.json", read_record(tmp_path / "00000.json") | {"index": 1})
    with pytest.raises(ValueError, match="key 's0-0' occurs more than once"):
        TokenDataset(tmp_path)
    assert [p.split(": ")[1] for p in verify(tmp_path).problems] == [f"key 's0-{i}' occurs 2 times" for i in range(2)]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (Tokens(codes_BNS=torch.full((1, 4, 1), 1000), grid=(2, 2)), r"codes of stream 0 lie in \[1000, 1000\]"),
        (Tokens(codes_BNS=torch.full((1, 4, 1), -1), grid=(2, 2)), r"the vocabulary is 0\.\.999"),
        (Tokens(codes_BNS=torch.zeros(1, 4, 1, dtype=torch.int64), grid=(4,)), r"have the grid \(4,\), the store has"),
        (Tokens(codes_BNS=torch.zeros(1, 4, 2, dtype=torch.int64), grid=(2, 2)), "tokens have 2 streams, expected 1"),
        (Tokens(latents_BND=torch.zeros(1, 4, 3), grid=(2, 2)), "these tokens are latents but"),
        (Tokens(codes_BNS=torch.zeros(2, 4, 1, dtype=torch.int64), grid=(2, 2)), "2 images of tokens but 1 rows"),
    ],
)
def test_tokens_that_do_not_fit_are_never_stored(tmp_path, tokens, message):
    with StoreWriter(tmp_path, SPEC, "f", PLAIN) as writer, pytest.raises(ValueError, match=message):
        writer.write_shard(0, tokens, [Row("a")])
    assert sorted(os.listdir(tmp_path)) == [".lock", "manifest.json"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3.4e38])
def test_latents_that_are_not_finite_in_bfloat16_are_never_stored(tmp_path, bad):
    latents = torch.zeros(1, 4, 3)
    latents[0, 2, 1] = bad
    with StoreWriter(tmp_path, LATENTS, "f", PLAIN) as writer, pytest.raises(ValueError, match="NaN or Inf"):
        writer.write_shard(0, Tokens(latents_BND=latents, grid=(2, 2)), [Row("a")])
    assert sorted(os.listdir(tmp_path)) == [".lock", "manifest.json"]


def test_committed_shards_are_immutable_and_a_closed_writer_is_closed(tmp_path):
    _store(tmp_path)
    with StoreWriter(tmp_path, SPEC, "finger-a", PLAIN) as writer:
        with pytest.raises(ValueError, match="shard index 1 is taken"):
            writer.write_shard(1, _codes(1), [Row("x")])
        with pytest.raises(ValueError, match="shard index -1 is negative"):
            writer.write_shard(-1, _codes(1), [Row("x")])
    with pytest.raises(ValueError, match="this writer is closed"):
        writer.write_shard(2, _codes(1), [Row("x")])


@pytest.mark.parametrize(
    ("spec", "fingerprint", "preprocess", "inputs", "message"),
    [
        (SPEC, "finger-b", PLAIN, None, "has tokenizer fingerprint finger-a, this run has finger-b"),
        (SPEC, "finger-a", Preprocess(32, 8), None, r"has preprocess .*fingerprints: finger-a, finger-a"),
        (LATENTS, "finger-b", PLAIN, None, "finger-a.*finger-b"),
        (SPEC, "finger-a", PLAIN, Inputs(7, 4, "00"), "has inputs None, this run has Inputs"),
    ],
)
def test_a_store_never_mixes_tokenizers(tmp_path, spec, fingerprint, preprocess, inputs, message):
    _store(tmp_path)
    with pytest.raises(StoreMismatch, match=message + ".*encode into a new folder"):
        StoreWriter(tmp_path, spec, fingerprint, preprocess, inputs=inputs)
    with pytest.raises(StoreMismatch, match=r"finger-a.*finger-b"):
        TokenDataset(tmp_path).require("finger-b")
    TokenDataset(tmp_path).require("finger-a")


def test_foreign_folders_are_refused_untouched(tmp_path):
    (tmp_path / "holiday.png").touch()
    with pytest.raises(ValueError, match=r"holds 1 other.*\('holiday.png'\)"):
        StoreWriter(tmp_path, SPEC, "f", PLAIN)
    assert os.listdir(tmp_path) == ["holiday.png"]
    with pytest.raises(ValueError, match=r"holiday\.png: is a file; give a folder"):
        StoreWriter(tmp_path / "holiday.png", SPEC, "f", PLAIN)
    with pytest.raises(ValueError, match="is not a token store"):
        TokenDataset(tmp_path)
    with pytest.raises(ValueError, match="is not a token store"):
        verify(tmp_path / "nowhere")


def test_second_writer_is_told_who_writes(tmp_path):
    with (
        StoreWriter(tmp_path, SPEC, "f", PLAIN),
        pytest.raises(ValueError, match=f"process {os.getpid()} is writing this store; wait for it"),
    ):
        StoreWriter(tmp_path, SPEC, "f", PLAIN)
    StoreWriter(tmp_path, SPEC, "f", PLAIN).close()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    _store(tmp_path)
    (tmp_path / ".00002.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "00002.parquet").write_bytes(b"whole but not committed")
    with StoreWriter(tmp_path, SPEC, "finger-a", PLAIN) as writer:
        assert not (tmp_path / ".00002.safetensors.tmp").exists()
        writer.write_shard(2, _codes(2), _rows(2))
    assert verify(tmp_path).ok
    assert len(TokenDataset(tmp_path)) == 9


def test_verify_finds_any_flipped_byte(tmp_path):
    with StoreWriter(tmp_path / "store", SPEC, "f", PLAIN, torch.randn(1000, 3), Inputs(4, 3, "00")) as writer:
        writer.write_shard(0, _codes(3), _rows(3))
        writer.write_shard(1, _codes(0), [], [Quarantined("bad", "/src/bad", "decode", "truncated")])
    report = verify(tmp_path / "store")
    assert (report.ok, report.shards, report.inputs, report.encoded, report.quarantined) == (True, 2, 4, 3, 1)
    files = [path for path in (tmp_path / "store").iterdir() if path.name != ".lock"]
    assert len(files) == 8
    for path in files:
        whole = path.read_bytes()
        for position in {0, len(whole) - 1, *range(0, len(whole), max(len(whole) // 40, 1))}:
            flipped = bytearray(whole)
            flipped[position] ^= 0x20
            path.write_bytes(flipped)
            assert any(path.name in line for line in verify(tmp_path / "store").problems), (path.name, position)
        path.write_bytes(whole)
    assert verify(tmp_path / "store").ok


@pytest.mark.parametrize("name", ["00000.safetensors", "00000.parquet", "00000.json", "00001.json"])
def test_missing_and_truncated_files_are_found(tmp_path, name):
    _store(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1])
    assert name in verify(tmp_path).problems[0]
    with pytest.raises(ValueError, match=name):
        TokenDataset(tmp_path)
    (tmp_path / name).unlink()
    problems = verify(tmp_path).problems
    assert any(name in line or f"shard {int(name[:5])} is not committed" in line for line in problems)


def test_missing_shards_of_a_known_list_are_found_and_block_reading(tmp_path):
    with StoreWriter(tmp_path, SPEC, "f", PLAIN, inputs=Inputs(7, 3, "00")) as writer:
        writer.write_shard(1, _codes(3), _rows(3))
    assert [line.split(": ")[1] for line in verify(tmp_path).problems] == [
        "shard 0 is not committed",
        "shard 2 is not committed",
        "7 inputs, but 3 encoded + 0 quarantined",
    ]
    with pytest.raises(ValueError, match=r"1.*3 shards.*encoding"):
        TokenDataset(tmp_path)


def test_records_cannot_point_out_of_the_folder(tmp_path):
    _store(tmp_path, (2,))
    record = read_record(tmp_path / "00000.json")
    record["files"] = {"../outside": record["files"]["parquet"]}
    write_record(tmp_path / "00000.json", record)
    with pytest.raises(ValueError, match="is not the record of shard 0"):
        TokenDataset(tmp_path)
    assert "is not the record of shard 0" in verify(tmp_path).problems[0]


def test_manifest_names_spec_fingerprint_and_versions_and_checks_its_format(tmp_path):
    _store(tmp_path)
    record = json.loads((tmp_path / "manifest.json").read_text())["record"]
    assert record["fingerprint"] == "finger-a"
    assert record["spec"]["codes"] == [1000]
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    write_record(tmp_path / "manifest.json", record | {"format": 2})
    with pytest.raises(ValueError, match=r"another.*version;.*1"):
        TokenDataset(tmp_path)


def test_disk_full_is_clear_leaves_shards_whole_and_can_be_finished(tmp_path):
    _store(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = _rows(400, "late")
    with StoreWriter(tmp_path, SPEC, "finger-a", PLAIN) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
        try:
            with pytest.raises(OSError, match=r"shards committed.*whole:.*00002\.safetensors"):
                writer.write_shard(2, _codes(400), rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert verify(tmp_path).ok
    assert not list(tmp_path.glob(".*.tmp"))
    with StoreWriter(tmp_path, SPEC, "finger-a", PLAIN) as writer:
        writer.write_shard(2, _codes(400), rows)
    assert len(TokenDataset(tmp_path)) == 407
