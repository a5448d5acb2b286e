"""Also a program: `python test_encode.py FOLDER OUT SECONDS` encodes slowly, to be killed."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_mm.api import Tokenizer, Tokens, TokenSpec
from tokenizers_mm.data.images import Preprocess
from tokenizers_mm.data.sets.shapes import Shapes, write_folder
from tokenizers_mm.models.autoencoder import AutoencoderConfig, build_autoencoder
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.saving.fingerprints import fingerprint_of
from tokenizers_mm.store.code_vectors import codebook_of
from tokenizers_mm.store.dataset import StoreMismatch, TokenDataset, verify
from tokenizers_mm.store.encode import encode_folder

PLAIN = Preprocess(32, 8)


class PatchMean:
    """One code of 256 grey levels for every 8 x 8 patch."""

    spec = TokenSpec(image_size=(32, 32), grid=(4, 4), dim=3, codes=(256,))

    def __init__(self, seconds=0.0):
        self.seconds, self.images = seconds, 0

    def encode(self, image_BCHW):
        time.sleep(self.seconds)
        self.images += len(image_BCHW)
        levels = ((image_BCHW + 1) * 127.5).round().double()
        codes = torch.nn.functional.avg_pool2d(levels.mean(1, keepdim=True), 8).round().long()
        return Tokens(codes_BNS=codes.flatten(1)[..., None], grid=tuple(codes.shape[2:]))

    def embed(self, tokens):
        return tokens.codes_BNS.float().expand(-1, -1, 3) / 127.5 - 1

    def decode(self, tokens):
        grey = self.embed(tokens).transpose(1, 2).reshape(-1, 3, *tokens.grid)
        return grey.repeat_interleave(8, 2).repeat_interleave(8, 3)


class Latents(PatchMean):
    """The same as continuous latents."""

    spec = TokenSpec(image_size=(32, 32), grid=(4, 4), dim=3)

    def encode(self, image_BCHW):
        tokens = super().encode(image_BCHW)
        return Tokens(latents_BND=super().embed(tokens), grid=tokens.grid)


def _encode(folder, out, tokenizer=None, fingerprint="mean-1", preprocess=PLAIN, **options):
    options = {"fingerprint": fingerprint, "preprocess": preprocess} | options
    return encode_folder(tokenizer or PatchMean(), folder, out, **options)


def _contents(store):
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="module")
def shapes():
    return Shapes(40, 0)


@pytest.fixture
def folder(tmp_path, shapes):
    return write_folder(shapes, tmp_path / "shapes")


def test_patch_mean_is_a_tokenizer():
    assert isinstance(PatchMean(), Tokenizer)


def test_a_real_folder_round_trips(folder, tmp_path, shapes):
    seen = []
    report = _encode(folder, tmp_path / "store", shard_size=16, progress=lambda done, total: seen.append((done, total)))
    assert (report.inputs, report.encoded, report.quarantined, report.skipped) == (40, 40, 0, 0)
    assert seen == [(16, 40), (32, 40), (40, 40)]
    data = TokenDataset(tmp_path / "store")
    assert data.keys == [f"{key}.png" for key in shapes.keys]
    assert data.captions == shapes.captions
    assert data.labels_I.tolist() == shapes.labels.tolist()
    image_BCHW = torch.tensor(shapes.images).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(data.batch(range(40)).tokens.codes_BNS, PatchMean().encode(image_BCHW).codes_BNS)
    assert torch.equal(data.codebook_VD, (torch.arange(256.0) / 127.5 - 1)[:, None].expand(-1, 3))
    assert verify(tmp_path / "store").ok


def test_tokens_are_checked_a_batch_at_a_time(folder, tmp_path, monkeypatch):
    """Once where an encoder call gave them and once where a shard is written; image by image only where that fails."""
    sizes, check = [], Tokens.check
    monkeypatch.setattr(Tokens, "check", lambda tokens, spec: (sizes.append(len(tokens)), check(tokens, spec))[1])
    _encode(folder, tmp_path / "store", shard_size=20, batch_size=8)
    assert sizes == [8, 8, 4, 20] * 2
    sizes.clear()
    report = _encode(folder, tmp_path / "bad", OutOfRange([3, 10]), shard_size=20, batch_size=8)
    assert sizes == [8, *[1] * 8, 8, *[1] * 8, 4, 18, 8, 8, 4, 20]
    assert report.quarantined == 2
    whole, rest = TokenDataset(tmp_path / "store"), TokenDataset(tmp_path / "bad")
    kept = [number for number in range(40) if number not in (3, 10)]
    assert rest.keys == [whole.keys[number] for number in kept]
    assert torch.equal(rest.batch(range(38)).tokens.data, whole.batch(kept).tokens.data)
    assert list(rest.quarantined) == [whole.keys[3], whole.keys[10]]
    assert {item.stage for item in rest.quarantined.values()} == {"encode"}
    assert "[256, 256]" in next(iter(rest.quarantined.values())).error


class OutOfRange(PatchMean):
    """Gives codes beyond the vocabulary for the images of these numbers."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def encode(self, image_BCHW):
        first = self.images
        tokens = super().encode(image_BCHW)
        for number in self.numbers:
            if first <= number < self.images:
                tokens.data[number - first] = 256
        return tokens


def test_second_run_encodes_nothing(folder, tmp_path):
    _encode(folder, tmp_path / "store", shard_size=16)
    before, tokenizer = _contents(tmp_path / "store"), PatchMean()
    report = _encode(folder, tmp_path / "store", tokenizer, shard_size=16)
    assert (report.inputs, report.encoded, report.quarantined, report.skipped) == (40, 0, 0, 40)
    assert tokenizer.images == 0
    assert _contents(tmp_path / "store") == before


@pytest.mark.parametrize("kind", [PatchMean, Latents])
def test_batch_size_changes_no_byte(folder, tmp_path, kind):
    for batch_size in (1, 7, 64):
        _encode(folder, tmp_path / str(batch_size), kind(), shard_size=16, batch_size=batch_size)
    assert _contents(tmp_path / "1") == _contents(tmp_path / "7") == _contents(tmp_path / "64")


def test_stopped_before_any_rename_then_resumed_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    class Stopped(BaseException):
        pass

    _encode(folder, tmp_path / "whole", shard_size=16)
    replace, renames = os.replace, 11  # codebook, manifest, 3 shards of 3 files
    for stop in range(renames):
        left = [stop]

        def fail(source, target, left=left):
            if left[0] == 0:
                raise Stopped
            left[0] -= 1
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(Stopped):
            _encode(folder, out, shard_size=16)
        monkeypatch.setattr(os, "replace", replace)
        report = _encode(folder, out, shard_size=16)
        assert report.encoded + report.skipped == 40
        assert report.skipped == 16 * (max(stop - 2, 0) // 3)
        assert _contents(out) == _contents(tmp_path / "whole")


SLOW = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"


def test_killed_then_resumed_gives_the_same_bytes(folder, tmp_path, start_process):
    _encode(folder, tmp_path / "whole", shard_size=8, batch_size=4)
    out = tmp_path / "killed"
    for committed in (1, 3):
        child = start_process(SLOW, folder, out, 0.05)
        deadline = time.monotonic() + 60
        while len(list(out.glob("0*.json"))) < committed and time.monotonic() < deadline:
            time.sleep(0.005)
        if committed == 1:
            with pytest.raises(ValueError, match=f"process {child.pid} is writing this store"):
                _encode(folder, out, shard_size=8, batch_size=4)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert committed <= len(list(out.glob("0*.json"))) < 5
    with pytest.raises(ValueError, match=r"5 shards.*encoding"):
        TokenDataset(out)
    report = _encode(folder, out, shard_size=8, batch_size=4)
    assert report.skipped >= 24
    assert report.inputs == report.encoded + report.skipped == 40
    assert _contents(out) == _contents(tmp_path / "whole")


def test_other_tokenizer_preprocessing_or_inputs_are_refused_on_resume(folder, tmp_path):
    out = tmp_path / "store"
    _encode(folder, out)
    with pytest.raises(StoreMismatch, match="fingerprint mean-1, this run has mean-2"):
        _encode(folder, out, fingerprint="mean-2")
    with pytest.raises(StoreMismatch, match="preprocess"):
        _encode(folder, out, preprocess=Preprocess(32, 4))
    with pytest.raises(StoreMismatch, match=r"inputs Inputs\(count=40.*encode into a new folder"):
        _encode(folder, out, shard_size=7)
    Image.new("RGB", (32, 32)).save(folder / "zzz.png")
    with pytest.raises(StoreMismatch, match=r"count=40.*count=41"):
        _encode(folder, out)


def test_bad_images_are_quarantined_with_stage_and_reason(folder, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-800])
    (folder / "empty.png").touch()
    Image.new("1", (12_000, 12_000)).save(folder / "giant.png")
    assert (folder / "giant.png").stat().st_size < 20_000
    (folder / "text.webp").write_text("<html>404</html>")
    (folder / "gone.png").symlink_to(folder / "nothing")
    report = _encode(folder, tmp_path / "store", shard_size=16)
    assert (report.inputs, report.encoded, report.quarantined, report.skipped) == (45, 40, 5, 0)
    listed = {}
    for path in (tmp_path / "store").glob("0*.json"):
        for item in json.loads(path.read_text())["record"]["quarantined"]:
            assert item["source"] == (folder / item["key"]).as_posix()
            listed[item["key"]] = (item["stage"], item["error"])
    assert listed["empty.png"] == ("header", "the file is empty (0 bytes)")
    assert listed["giant.png"] == ("header", "12000 x 12000 pixels are more than max_pixels=100000000")
    assert listed["text.webp"][0] == "header"
    assert listed["text.webp"][1].startswith("no image format is recognised")
    assert listed["cut.jpg"][0] == "decode"
    assert "truncated" in listed["cut.jpg"][1]
    assert listed["gone.png"] == ("read", "No such file or directory")
    checked = verify(tmp_path / "store")
    assert (checked.ok, checked.inputs, checked.encoded, checked.quarantined) == (True, 45, 40, 5)
    assert len(TokenDataset(tmp_path / "store")) == 40


def test_all_bad_is_an_error_on_every_run(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).touch()
    for preprocess in (PLAIN, PLAIN, Preprocess(None, 8)):
        with pytest.raises(ValueError, match=r"2 images.*encoded;.*'a.png': header: .*0"):
            _encode(tmp_path / "in", tmp_path / "store", preprocess=preprocess)


class Poisoned(PatchMean):
    """Gives one image a code that does not exist."""

    def encode(self, image_BCHW):
        tokens = super().encode(image_BCHW)
        tokens.codes_BNS[image_BCHW.mean((1, 2, 3)) < -0.99, 3] = 256
        return tokens


class Nan(Latents):
    """Gives one image NaN."""

    def encode(self, image_BCHW):
        tokens = super().encode(image_BCHW)
        tokens.latents_BND[image_BCHW.mean((1, 2, 3)) < -0.99, 3] = float("nan")
        return tokens


@pytest.mark.parametrize(
    ("tokenizer", "reason"), [(Poisoned(), "codes of stream 0 lie in [0, 256]"), (Nan(), "latents hold NaN or Inf")]
)
def test_tokens_that_are_wrong_are_quarantined_alone(folder, tmp_path, tokenizer, reason):
    Image.new("RGB", (32, 32)).save(folder / "black.png")
    report = _encode(folder, tmp_path / "store", tokenizer)
    assert (report.encoded, report.quarantined) == (40, 1)
    (item,) = json.loads((tmp_path / "store" / "00000.json").read_text())["record"]["quarantined"]
    assert (item["key"], item["stage"]) == ("black.png", "encode")
    assert item["error"].startswith(reason)
    assert "black.png" not in TokenDataset(tmp_path / "store").keys


def test_an_image_that_our_own_tokenizer_refuses_costs_only_itself(folder, tmp_path):
    net = ConvConfig(channels=8, groups=4, multipliers=(1,), blocks=1, patch=8)
    bottleneck = {"kind": "fsq", "levels": [5, 5]}
    model = build_autoencoder(AutoencoderConfig(image_size=(32, 32), net=net, bottleneck=bottleneck)).eval()

    def overflow(_, images, features):
        return features.masked_fill((images[0].mean((1, 2, 3)) < -0.99)[:, None, None, None], float("nan"))

    model.encoder.register_forward_hook(overflow)
    with pytest.raises(ValueError, match="NaN or Inf features"):
        model.encode(torch.stack([torch.zeros(3, 32, 32), -torch.ones(3, 32, 32)]))
    Image.new("RGB", (32, 32)).save(folder / "black.png")
    report = _encode(folder, tmp_path / "store", model)
    assert (report.inputs, report.encoded, report.quarantined) == (41, 40, 1)
    (item,) = json.loads((tmp_path / "store" / "00000.json").read_text())["record"]["quarantined"]
    assert (item["key"], item["stage"]) == ("black.png", "encode")


def test_native_sizes_take_the_first_and_quarantine_the_others(tmp_path):
    for number, size in enumerate([(48, 24), (48, 24), (32, 32), (50, 29)]):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
    report = _encode(tmp_path, tmp_path / "store", preprocess=Preprocess(None, 8))
    assert (report.encoded, report.quarantined) == (3, 1)
    data = TokenDataset(tmp_path / "store")
    assert data.spec.image_size == (24, 48)
    assert data.batch([0]).tokens.grid == (3, 6)
    (item,) = json.loads((tmp_path / "store" / "00000.json").read_text())["record"]["quarantined"]
    assert item["error"] == "(32, 32) pixels, this store holds images of (24, 48)"


def _of_sizes(folder, *sizes):
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number:02}.png")
    return folder


def test_too_many_quarantined_are_told_on_every_run_with_the_remedy(tmp_path):
    folder = _of_sizes(tmp_path / "in", (48, 24), *[(32 + 8 * number, 32) for number in range(7)])
    for encoded in (1, 0):
        report = _encode(folder, tmp_path / "store", preprocess=None, shard_size=4)
        assert (report.encoded, report.quarantined, report.skipped) == ((1, 7, 0) if encoded else (0, 0, 8))
        assert report.quarantined_share == 7 / 8
        assert report.reasons == (("preprocess: (32, 32) pixels, this store holds images of (24, 48)", 7),)
        assert "--size N" in report.refused.complaint(0.5)[-1]
        assert report.refused.complaint(0.9) == ()
    checked = verify(tmp_path / "store")
    assert (checked.ok, checked.quarantined_share, checked.refused) == (True, 7 / 8, report.refused)
    # The remedy helps, in a new folder.
    with pytest.raises(StoreMismatch, match="image_size"):
        _encode(folder, tmp_path / "store", preprocess=None, size=32)
    whole = _encode(folder, tmp_path / "sized", preprocess=None, size=32)
    assert (whole.encoded, whole.quarantined_share, verify(tmp_path / "sized").quarantined_share) == (8, 0, 0)


def test_a_size_the_tokenizer_cannot_take_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"36.*multiple.*downsampling 8"):
        _encode(folder, tmp_path / "store", preprocess=Preprocess(36))
    assert not (tmp_path / "store").exists()


def test_names_that_are_no_text_are_quarantined(folder, tmp_path):
    try:
        Path(str(folder) + "/bad\udcff.png").touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert _encode(folder, tmp_path / "store").quarantined == 1
    assert verify(tmp_path / "store").ok


def test_unicode_newline_and_long_names(folder, tmp_path):
    names = ["ünï cödé 🦊.png", "line\nbreak.png", "deep/" + "x" * 200 + "/" + "y" * 200 + ".png"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(folder / name)
    assert _encode(folder, tmp_path / "store").quarantined == 0
    assert set(names) < set(TokenDataset(tmp_path / "store").keys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 1: expected"),
        ('{"caption": "no file"}', "line 1: expected"),
        ('{"file": "a.png", "label": "seven"}', "line 1: expected"),
        ('{"file": "a.png", "caption": 3}', "line 1: expected"),
        ('{"file": "a.png"}\n\n{"file": "a.png"}', "line 3: 'a.png' has a line already"),
        ('{"file": "b.png", "caption": "x"}', "1 lines name no image under .* the first is 'b.png'"),
    ],
)
def test_bad_captions_name_file_and_line(tmp_path, line, message):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text(line)
    with pytest.raises(ValueError, match=f"captions.jsonl:? ?{message}"):
        _encode(tmp_path, tmp_path / "store")


def test_captions_from_elsewhere(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "a.png")
    (tmp_path / "notes.jsonl").write_text('{"file": "a.png", "caption": "schwarz, 黒"}\n')
    _encode(tmp_path / "in", tmp_path / "store", captions=tmp_path / "notes.jsonl")
    data = TokenDataset(tmp_path / "store")
    assert data.captions == ["schwarz, 黒"]
    assert data.labels_I is None
    with pytest.raises(ValueError, match=r"missing.jsonl: cannot be read"):
        _encode(tmp_path / "in", tmp_path / "other", captions=tmp_path / "missing.jsonl")


def _folder_of(root, *keys):
    for number, key in enumerate(keys):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(root / key)
    return root


def test_captions_stand_where_training_looks_for_them(tmp_path):
    folder = _folder_of(tmp_path / "in", "cat/a.png", "cat/b.png", "dog/c.png")
    (folder / "cat" / "a.txt").write_text("a red\ncat")
    (folder / "README.txt").write_text("hello")
    with pytest.warns(UserWarning, match=r"README\.txt: beside no image"):
        report = _encode(folder, tmp_path / "texts")
    assert (report.captions, report.labels) == (1, 0)
    assert report.found == ("captions: 1 of 3 images, from .txt files beside them",)
    assert TokenDataset(tmp_path / "texts").captions == ["a red cat", "", ""]

    (folder / "captions.csv").write_text("file,label\ncat/a.png,cat\ndog/c.png,dog")
    report = _encode(folder, tmp_path / "table")
    assert (report.captions, report.labels) == (0, 2)
    assert TokenDataset(tmp_path / "table").labels_I.tolist() == [0, -1, 1]

    report = _encode(folder, tmp_path / "folders", captions="folders")
    data = TokenDataset(tmp_path / "folders")
    assert (report.captions, report.labels) == (3, 3)
    assert (data.captions, data.labels_I.tolist()) == (["cat", "cat", "dog"], [0, 0, 1])

    report = _encode(folder, tmp_path / "none", captions="none")
    assert (report.captions, report.labels, report.found) == (0, 0, ())
    assert TokenDataset(tmp_path / "none").captions == ()


def test_sub_folders_that_nobody_asked_for_are_told(tmp_path):
    report = _encode(_folder_of(tmp_path / "in", "cat/a.png", "dog/c.png"), tmp_path / "store")
    assert "--captions folders" in report.found[0]
    assert TokenDataset(tmp_path / "store").labels_I is None
    plain = _encode(_folder_of(tmp_path / "plain", "a.png"), tmp_path / "other")
    assert plain.found == ("captions: none found",)


@pytest.mark.parametrize(
    ("lines", "sha256"),
    [
        (None, "b468ed5862ae109eb21d4206f50eb713932adc06fe4b869351e0cb1d88ecb267"),
        (
            '{"file": "a.png", "caption": "a red cat", "label": 3}\n{"file": "b/c.png", "caption": ""}\n',
            "4d62a5a87e6642dd14184ad8ec5fcaee1ac98451ee003813d475812745be936d",
        ),
    ],
    ids=["without captions", "with captions.jsonl"],
)
def test_stores_made_before_there_were_other_places_still_resume(tmp_path, lines, sha256):
    """What the manifest said of these inputs when only captions.jsonl was read."""
    folder = _folder_of(tmp_path / "in", "a.png", "b/c.png")
    if lines is not None:
        (folder / "captions.jsonl").write_text(lines)
    _encode(folder, tmp_path / "store")
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["record"]["inputs"]["sha256"] == sha256
    (folder / "a.txt").write_text("another caption")
    if lines is None:
        with pytest.raises(StoreMismatch, match=r"`captions` says where"):
            _encode(folder, tmp_path / "store")
        assert _encode(folder, tmp_path / "store", captions="none").skipped == 2
    else:
        assert _encode(folder, tmp_path / "store").skipped == 2


class Bare:
    """The four members and nothing else."""

    spec, encode, embed, decode = PatchMean.spec, PatchMean.encode, PatchMean.embed, PatchMean.decode

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    images = 0


def test_a_plain_class_needs_neither_fingerprint_nor_preprocessing(folder, tmp_path):
    report = encode_folder(Bare(), folder, tmp_path / "store")
    data = TokenDataset(tmp_path / "store")
    assert (report.encoded, data.preprocess) == (40, Preprocess(None, 8).to_json())
    assert data.fingerprint == fingerprint_of(Bare())
    assert encode_folder(Bare(), folder, tmp_path / "store").skipped == 40
    with pytest.raises(StoreMismatch, match="fingerprint"):
        encode_folder(Bare(1e-9), folder, tmp_path / "store")
    encode_folder(Bare(), folder, tmp_path / "sized", size=16)
    assert TokenDataset(tmp_path / "sized").preprocess == Preprocess(16, 8).to_json()
    with pytest.raises(ValueError, match="size=20 is not a multiple of 8"):
        encode_folder(Bare(), folder, tmp_path / "other", size=20)
    with pytest.raises(ValueError, match=r"size=16 and preprocess=.*give one"):
        encode_folder(Bare(), folder, tmp_path / "other", size=16, preprocess=PLAIN)
    with pytest.raises(ValueError, match="device='meta': Bare has no"):
        encode_folder(Bare(), folder, tmp_path / "other", device=torch.device("meta"))
    with pytest.raises(ValueError, match="device 'gpu': expected auto"):
        encode_folder(Bare(), folder, tmp_path / "other", device="gpu")
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_that_takes_one_size_gets_it(tmp_path):
    class OneSize(Bare):
        takes_one_size = True

    folder = _of_sizes(tmp_path / "in", (48, 24), (64, 64))
    assert encode_folder(OneSize(), folder, tmp_path / "one").encoded == 2
    assert TokenDataset(tmp_path / "one").spec.image_size == (32, 32)
    assert encode_folder(Bare(), folder, tmp_path / "any").encoded == 1  # native sizes: that of the first


def test_no_codebook_where_vectors_depend_on_the_position():
    class Positional(PatchMean):
        def embed(self, tokens):
            return super().embed(tokens) + torch.arange(16.0)[:, None]

    assert codebook_of(PatchMean()).shape == (256, 3)
    assert codebook_of(Positional()) is None
    assert codebook_of(Latents()) is None


def test_a_tokenizer_that_breaks_its_promise_is_named(folder, tmp_path):
    class Liar(PatchMean):
        spec = TokenSpec(image_size=(32, 32), grid=(8, 8), dim=3, codes=(256,))

    with pytest.raises(ValueError, match=r"returned 32.*\(4, 4\).*32.*promises \(8, 8\)"):
        _encode(folder, tmp_path / "store", Liar())


if __name__ == "__main__":
    _encode(sys.argv[1], sys.argv[2], PatchMean(float(sys.argv[3])), shard_size=8, batch_size=4)
