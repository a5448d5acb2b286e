"""Pictures to captions: what is written is what the generator says about the tokens of exactly these pixels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import backbones
from recipes.programs.caption import Captioned, caption_images, write_captions
from recipes.programs.sample import TOKENIZER_FILE
from tokenizers_mm.api import TokenSpec
from tokenizers_mm.data.annotations import read_partial_annotations
from tokenizers_mm.data.images import Preprocess, decode, to_tensor
from tokenizers_mm.saving.fingerprints import fingerprint_of

OPTIONS = {"width": 16, "depth": 1, "heads": 2, "max_text": 12}
SPEC = TokenSpec(image_size=(32, 32), grid=(8, 8), dim=3, codes=(64,))  # of `plain.Pool()`


def generator_of(spec=SPEC, kind="autoregressive", **options):
    torch.manual_seed(0)
    generator = backbones.build(kind, OPTIONS | options, spec)
    for parameter in generator.parameters():  # heads start at zero, where every caption is the same
        torch.nn.init.normal_(parameter, std=1.0)
    return generator


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five images of four sizes in a folder and one below it, one file that is none."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "more").mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(32, 32), (40, 50), (64, 33), (16, 24), (32, 32)]):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / ("more" if number == 4 else "") / f"{number}.png")
    (root / "broken.png").write_bytes(b"not a picture")
    return root


def test_captions_are_those_of_the_tokens_of_the_centre(plain, pictures):
    generator, told, skipped = generator_of(), [], []
    captions = caption_images(
        generator, plain.pool, pictures, batch_size=2, written=told.append, skipped=skipped.append
    )
    assert [one.key for one in captions] == ["0.png", "1.png", "2.png", "3.png", "more/4.png"]
    assert told == captions
    assert [str(error).partition(": ")[0] for error in skipped] == [str(pictures / "broken.png")]
    for one in captions:
        image_CHW = to_tensor(Preprocess(32)(decode(one.path)))
        assert [one.caption] == generator.caption(plain.pool.encode(image_CHW[None]))
    assert len({one.caption for one in captions}) == 5  # so the comparison above can fail
    short = caption_images(generator, plain.pool, [pictures / "0.png"], max_length=3)
    assert short == [Captioned(pictures / "0.png", str(pictures / "0.png"), short[0].caption)]
    assert len(short[0].caption) <= 3 < max(len(one.caption) for one in captions)


def test_oblong_generators_get_oblong_images(plain, pictures):
    tokenizer = plain.Pool()
    tokenizer.spec = TokenSpec(image_size=(24, 48), grid=(6, 12), dim=3, codes=(64,))
    seen = []
    tokenizer.encode = lambda image_BCHW: seen.append(image_BCHW) or plain.Pool.encode(tokenizer, image_BCHW)
    caption_images(generator_of(tokenizer.spec), tokenizer, [pictures / "1.png", pictures / "2.png"])
    assert seen[0].shape == (2, 3, 24, 48)
    # 48 columns of 50 leave 38.4 rows of 40, so 39; the middle 24 of them are taken.
    resized = Image.open(pictures / "1.png").resize((48, 39), Image.Resampling.BICUBIC)
    assert torch.equal(seen[0][0], to_tensor(np.array(resized)[8:32]))


def test_folders_files_and_run_folders(plain, pictures, tmp_path):
    backbones.save(generator_of(), tmp_path / "run" / "generator")
    images = [pictures / "more", pictures / "1.png", str(pictures / "more" / "4.png"), pictures / "1.png"]
    for generator in (tmp_path / "run", tmp_path / "run" / "generator", str(tmp_path / "run")):
        captions = caption_images(generator, "plain_tokenizers:Pool", images)
        assert [one.key for one in captions] == ["4.png", str(pictures / "1.png")]


def test_captions_are_written_as_image_folders_have_them(tmp_path):
    captions = [
        Captioned(tmp_path / "a.png", "a.png", 'tab\t"ä"\n'),
        Captioned(tmp_path / "b" / "c.png", "b/c.png", ""),
    ]
    for one in captions:
        one.path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (1, 1)).save(one.path)
    write_captions(captions, tmp_path / "new" / "captions.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "captions.jsonl").read_text().splitlines()]
    assert lines == [{"file": "a.png", "caption": 'tab\t"ä"\n'}, {"file": "b/c.png", "caption": ""}]
    write_captions(captions, tmp_path / "captions.jsonl")
    notes = read_partial_annotations(tmp_path, [one.path for one in captions])
    assert notes.captions["a.png"] == 'tab\t"ä"\n'
    assert captions[0].line == f'{tmp_path / "a.png"}\ttab "ä"'
    assert Captioned(tmp_path, "", "a\x1b[31m").line == f"{tmp_path}\ta\ufffd[31m"


def test_generators_that_write_no_captions_are_refused(plain, pictures, tmp_path):
    latents = plain.Means().spec
    for name, generator, tokenizer, why in (
        ("flow", generator_of(latents, "flow", max_text=8), plain.Means(), "it draws images only"),
        ("classes", generator_of(classes=3), plain.pool, "it was trained on classes"),
        ("no_text", generator_of(text_weight=0.0), plain.pool, "it was trained with text_weight=0"),
    ):
        backbones.save(generator, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} writes no captions: {why}; use an autoregressive one"):
            caption_images(tmp_path / name, tokenizer, pictures)
        with pytest.raises(ValueError, match=rf"^the generator writes no captions: {why}"):
            caption_images(generator, tokenizer, pictures)


def test_another_tokenizer_is_refused(plain, pictures, tmp_path):
    backbones.save(generator_of(), tmp_path / "g")
    (tmp_path / "g" / TOKENIZER_FILE).write_text(fingerprint_of(plain.pool) + "\n")
    assert caption_images(tmp_path / "g", plain.Pool(), pictures / "0.png")
    other = plain.Pool()
    other.version = 2
    with pytest.raises(
        ValueError, match=f"learned the tokens of tokenizer {fingerprint_of(plain.pool)}, but the token"
    ):
        caption_images(tmp_path / "g", other, pictures)
    with pytest.raises(ValueError, match=r"generator.*tokenizer"):
        caption_images(generator_of(), plain.Pool(block=8), pictures)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "images: expected at least one file or folder"),
        (["broken.png"], {}, r"none of 1 images could be read; the first: .*broken.png: header: no image format"),
        (["nowhere.png", "broken.png"], {}, r"none of 2 images could be read; the first: .*nowhere.png: read: No such"),
        (["."], {"batch_size": 0}, "batch_size=0: expected at least 1"),
        (["."], {"max_length": 0}, "max_length=0: a caption needs at least 1 byte"),
        (["."], {"device": "gpu"}, "device 'gpu': expected auto, cpu"),
    ],
)
def test_mistakes_are_named(plain, pictures, images, options, message):
    with pytest.raises(ValueError, match=message):
        caption_images(generator_of(), plain.pool, [pictures / image for image in images], **options)
