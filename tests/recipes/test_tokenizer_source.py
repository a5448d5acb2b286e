"""`module:attribute` becomes a tokenizer, and every way in which it does not is one line that says why."""

import sys
from pathlib import Path

import pytest

from recipes.inputs.tokenizer_source import names_an_object, open_tokenizer
from recipes.schema.recipe import load_recipe
from tokenizers_mm import build_autoencoder, fingerprint, load, save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    save(build_autoencoder(load_recipe("shapes_fsq").model).eval(), root / "run" / "tokenizer")
    return root / "run"


def test_tokenizers_are_given_back(plain, saved):
    loaded = load(saved / "tokenizer")
    for tokenizer in (plain.pool, loaded):
        assert open_tokenizer(tokenizer) is tokenizer
    with pytest.raises(ValueError, match="tokenizer is a NoDecoder without embed, decode"):
        open_tokenizer(plain.NoDecoder())
    with pytest.raises(ValueError, match=r"tokenizer.*Pool itself:.*object"):
        open_tokenizer(plain.Pool)


def test_folders_are_loaded(saved, monkeypatch):
    expected = fingerprint(load(saved / "tokenizer"))
    monkeypatch.chdir(saved.parent)
    for source in (saved, saved / "tokenizer", str(saved), "run", "run/tokenizer"):
        assert fingerprint(open_tokenizer(source)) == expected


@pytest.mark.parametrize(
    ("source", "block"),
    [
        ("plain_tokenizers:pool", 4),
        ("plain_tokenizers:Pool", 4),
        ("plain_tokenizers:make", 4),
        ("plain_tokenizers:Choices.coarse", 8),
    ],
)
def test_an_attribute_is_a_tokenizer_or_makes_one(plain, source, block):
    tokenizer = open_tokenizer(source)
    assert type(tokenizer) is plain.Pool
    assert tokenizer.block == block
    assert (tokenizer is plain.pool) == source.endswith(":pool")
    assert type(open_tokenizer(Path(source))) is plain.Pool


def test_the_current_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "my_codecs").mkdir()
    (tmp_path / "my_codecs" / "mine.py").write_text(
        "from plain_copy import Pool\n\n\ndef small():\n    return Pool(16)\n"
    )
    (tmp_path / "plain_copy.py").write_text((Path(__file__).parents[1] / "plain" / "plain_tokenizers.py").read_text())
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match=r"'my_codecs'.*current.*installed"):
        open_tokenizer("my_codecs.mine:small")
    monkeypatch.chdir(tmp_path)
    assert open_tokenizer("my_codecs.mine:small").spec.image_size == (16, 16)
    with pytest.raises(ValueError, match=r"there is no module 'my_codecs.yours'"):
        open_tokenizer("my_codecs.yours:small")


MISTAKES = [
    ("no_such_module:pool", r"no_such_module:pool: there is no module 'no_such_module' in the current folder /"),
    ("plain_tokenizers.py:Pool", r"name the module as it is imported, plain_tokenizers:\.\.\."),
    ("plain_tokenizers:Pol", r"plain_tokenizers:Pol: plain_tokenizers has no 'Pol'; did you mean .*pool.*\?"),
    ("plain_tokenizers:Zzz", r"plain_tokenizers has no 'Zzz'; it has Choices, F, Means, NoDecoder, Pool, "),
    ("plain_tokenizers:Choices.fine", r"plain_tokenizers.Choices has no 'fine'; it has coarse"),
    ("plain_tokenizers:NoDecoder", r"plain_tokenizers:NoDecoder is a NoDecoder without embed, decode"),
    ("plain_tokenizers:number", r"plain_tokenizers:number is a int without spec, encode, embed, decode"),
    ("plain_tokenizers:make_nothing", r"plain_tokenizers:make_nothing is a NoneType without spec"),
    ("plain_tokenizers:needs", r"plain_tokenizers:needs is called without arguments, and it is needs\(side\)"),
    ("plain_tokenizers:fails", r"making the tokenizer failed with RuntimeError: the weights are .* machine \(.*plain_"),
    ("plain_tokenizers:pool.encode", r"pool.encode is called without arguments, and it is encode\(image_BCHW\)"),
]


@pytest.mark.parametrize(("source", "message"), MISTAKES, ids=[source for source, _ in MISTAKES])
@pytest.mark.usefixtures("plain")
def test_mistakes_are_named(source, message):
    with pytest.raises(ValueError, match=message):
        open_tokenizer(source)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_library", r"importing broken failed with ModuleNotFoundError: No module named 'no_such_libr"),
        ("1 / 0", r"importing broken failed with ZeroDivisionError: division by zero \(.*broken.py, line 1\)"),
        ("def f(:", r"importing broken failed with SyntaxError: invalid syntax \(broken.py, line 1\)"),
        ("from torch import nothing", r"importing broken failed with ImportError: cannot import name 'nothing'"),
    ],
)
def test_what_goes_wrong_in_the_users_module_is_shown(tmp_path, monkeypatch, code, message):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"^broken:pool: {message}") as caught:
        open_tokenizer("broken:pool")
    assert caught.value.__cause__ is not None
    assert len(str(caught.value).splitlines()) == 1


def test_what_names_an_object(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    for source in ("m:a", "m.n:a.b", "_m1:A"):
        assert names_an_object(source)
    for source in ("timm:vit", "open_clip:x", "lite0", "owner/name", "a:b", "C:\\x", "m:", ":a", "m:a b", "m:a:b", 3):
        assert not names_an_object(source)


def test_a_network_of_a_library_is_no_module(monkeypatch):
    loaded = []
    monkeypatch.setattr("tokenizers_mm.checkpoints.load", lambda source: loaded.append(str(source)))
    for source in ("timm:vit", "lite0", "owner/name", "open_clip:ViT-B-32/openai"):
        open_tokenizer(source)
    assert loaded == ["timm:vit", "lite0", "owner/name", "open_clip:ViT-B-32/openai"]


@pytest.mark.usefixtures("plain")
def test_loading_imports_nothing():
    with pytest.raises(ValueError, match="plain_tokenizers:pool"):
        load("plain_tokenizers:pool")
