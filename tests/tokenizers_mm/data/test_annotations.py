"""Captions and labels beside images: four places, and an error that names the file wherever something does not pair."""

import json

import pytest

from tokenizers_mm.data.annotations import Annotations, PartialAnnotations, read_annotations, read_partial_annotations


@pytest.fixture
def folder(tmp_path):
    for key in ("cat/a.png", "cat/b.jpg", "dog_big/c.png"):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).touch()
    return tmp_path


def images(folder):
    return [folder / key for key in ("cat/a.png", "cat/b.jpg", "dog_big/c.png")]


def write_jsonl(folder, *notes):
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(note) for note in notes))


def write_texts(folder, *texts):
    for image, text in zip(images(folder), texts, strict=True):
        if text is not None:
            image.with_suffix(".txt").write_text(text)


def test_lines_of_json(folder):
    write_jsonl(
        folder,
        {"file": "dog_big/c.png", "caption": "a dog", "label": 1},
        {"file": "cat/a.png", "caption": "a cat", "label": 0},
        {"file": "cat/b.jpg", "caption": "an old cat", "label": 0},
    )
    captions = ("a cat", "an old cat", "a dog")
    assert read_annotations(folder, images(folder)) == Annotations(captions, (0, 0, 1), ("0", "1"))
    (folder / "classes.json").write_text('["cat", "dog", "bird"]')
    assert read_annotations(folder, images(folder)).classes == ("cat", "dog", "bird")


def test_tables(folder):
    (folder / "captions.csv").write_text(
        'caption,file,label\n"a, cat",cat/a.png,cat\nb,cat/b.jpg,cat\nc,dog_big/c.png,dog'
    )
    assert read_annotations(folder, images(folder)) == Annotations(("a, cat", "b", "c"), (0, 0, 1), ("cat", "dog"))
    (folder / "classes.json").write_text('["dog", "cat"]')
    assert read_annotations(folder, images(folder)).labels == (1, 1, 0)
    (folder / "captions.csv").write_text("file,label\ncat/a.png,0\ncat/b.jpg,1\ndog_big/c.png,1")
    assert read_annotations(folder, images(folder)) == Annotations((), (0, 1, 1), ("dog", "cat"))


def test_texts_beside_images(folder):
    write_texts(folder, "a\n cat ", "b", "c")
    assert read_annotations(folder, images(folder)) == Annotations(("a cat", "b", "c"), (), ())


def test_a_folder_per_class(folder):
    assert read_annotations(folder, images(folder)) == Annotations(
        ("cat", "cat", "dog big"), (0, 0, 1), ("cat", "dog_big")
    )


FULL = [{"file": key, "caption": key, "label": 0} for key in ("cat/a.png", "cat/b.jpg", "dog_big/c.png")]


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (FULL[:2], "captions.jsonl: 1 of 3 images have no caption; the first is 'dog_big/c.png'"),
        ([*FULL[:2], {"file": "dog_big/c.png", "caption": "c"}], "captions.jsonl: 1 of 3 images have no label"),
        ([*FULL, {"file": "x.png"}], "captions.jsonl: 1 lines name no image under .*'x.png'"),
        ([*FULL, FULL[0]], "captions.jsonl line 4: 'cat/a.png' has a line already"),
        ([*FULL[:2], FULL[2] | {"caption": " "}], "captions.jsonl: the caption of 'dog_big/c.png' is empty"),
        ([*FULL[:2], FULL[2] | {"label": -1}], r"captions.jsonl: labels span -1\.\.0"),
        ([{"file": 3}], "captions.jsonl line 1: expected"),
        ([{"file": "cat/a.png"}], "captions.jsonl: holds neither captions nor labels"),
    ],
)
def test_lines_of_json_that_do_not_pair(folder, notes, message):
    write_jsonl(folder, *notes)
    with pytest.raises(ValueError, match=message):
        read_annotations(folder, images(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,caption\na,b", r"captions.csv line 1: expected the columns file, .* found \['caption', 'name'\]"),
        ("file,caption\ncat/a.png,a\ncat/a.png,b", "captions.csv line 3: 'cat/a.png' has a line already"),
        ("file,caption\ncat/a.png,a\ncat/b.jpg,\ndog_big/c.png,c", "captions.csv: the caption of 'cat/b.jpg' is empty"),
        (
            "file,label\ncat/a.png,a\ncat/b.jpg,fish\ndog_big/c.png,a",
            "captions.csv: label 'fish' is not in classes.json",
        ),
        ("file,label\ncat/a.png,0\ncat/b.jpg,9\ndog_big/c.png,0", r"labels span 0\.\.9: expected 0\.\.0"),
        ('file,caption\ncat/a.png,"a', r"captions.csv line \d: unexpected end of data"),
        (
            "file,caption\ncat/a.png,a cat, asleep",
            "captions.csv line 2: more fields than .* double quotes",
        ),
    ],
)
def test_tables_that_do_not_pair(folder, text, message):
    (folder / "classes.json").write_text('["a"]')
    (folder / "captions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_annotations(folder, images(folder))


def test_texts_that_do_not_pair(folder):
    write_texts(folder, "a", None, "c")
    with pytest.raises(ValueError, match=r"b\.txt: missing, while other images have one"):
        read_annotations(folder, images(folder))
    write_texts(folder, "a", "  \n", "c")
    with pytest.raises(ValueError, match=r"b\.txt: the caption is empty"):
        read_annotations(folder, images(folder))
    (folder / "cat" / "b.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"b\.txt: cannot be read"):
        read_annotations(folder, images(folder))


@pytest.mark.parametrize("text", ["{}", "[]", '["a", ""]', "[1]", "["])
def test_class_names_must_be_a_list(folder, text):
    write_jsonl(folder, *FULL)
    (folder / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json: "):
        read_annotations(folder, images(folder))


def test_no_notes_at_all(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"no captions and no labels; add captions\.jsonl"):
        read_annotations(tmp_path, [tmp_path / "a.png"])


# -------------------------------------------------------------------------------------------------------- some of them


def test_some_lines_of_json_are_taken_as_they_are(folder):
    write_jsonl(
        folder, {"file": "dog_big/c.png", "caption": "a dog", "label": -7}, {"file": "cat/a.png", "caption": ""}
    )
    found = read_partial_annotations(folder, images(folder))
    assert found == PartialAnnotations(
        {"cat/a.png": "", "dog_big/c.png": "a dog"}, {"dog_big/c.png": -7}, "captions.jsonl"
    )
    assert found.lines(3) == (
        "captions: 1 of 3 images, from captions.jsonl",
        "labels: 1 of 3 images, from captions.jsonl",
    )


def test_a_table_may_have_empty_cells_and_its_names_become_numbers(folder):
    text = 'file,caption,label\ncat/a.png,"a cat, ""asleep""\nand dreaming",cat\ncat/b.jpg, ,\ndog_big/c.png,,dog'
    (folder / "captions.csv").write_text("\ufeff" + text, encoding="utf-8")  # as spreadsheets write it
    captions = {"cat/a.png": 'a cat, "asleep"\nand dreaming'}
    expected = PartialAnnotations(captions, {"cat/a.png": 0, "dog_big/c.png": 1}, "captions.csv", ("cat", "dog"))
    assert read_partial_annotations(folder, images(folder)) == expected
    assert "labels: 2 of 3 images, from captions.csv: 2 classes" in expected.lines(3)
    (folder / "classes.json").write_text('["dog", "bird", "cat"]')
    assert read_partial_annotations(folder, images(folder)).labels == {"cat/a.png": 2, "dog_big/c.png": 0}
    # Training takes the same file and finds the gap.
    with pytest.raises(ValueError, match=r"captions\.csv: .*'cat/b.jpg'"):
        read_annotations(folder, images(folder))


def test_some_texts_are_those_of_training_and_strays_are_told(folder):
    write_texts(folder, "a\n cat ", None, "c")
    (folder / "README.txt").write_text("hello")
    (folder / "cat" / "z.txt").write_text("no image")
    found = read_partial_annotations(folder, images(folder))
    assert found.captions == {"cat/a.png": "a cat", "dog_big/c.png": "c"}
    assert found.strays == ("README.txt", "cat/z.txt")
    assert found.lines(3) == ("captions: 2 of 3 images, from .txt files beside them",)
    write_texts(folder, None, "\ufeffb", "  \n")
    found = read_partial_annotations(folder, images(folder))
    assert found.captions == {"cat/a.png": "a cat", "cat/b.jpg": "b"}
    captions = [found.captions[key] for key in ("cat/a.png", "cat/b.jpg")]
    assert list(read_annotations(folder, images(folder)[:2]).captions) == captions


def test_names_of_folders_are_taken_where_they_are_asked_for(folder):
    (folder / "top.png").touch()
    every = [*images(folder), folder / "top.png"]
    nothing = read_partial_annotations(folder, every)
    assert nothing == PartialAnnotations(folders=True)
    assert "--captions folders" in nothing.lines(4)[0]
    found = read_partial_annotations(folder, every, "folders")
    classes = read_annotations(folder, images(folder))
    assert tuple(found.captions.values()) == classes.captions
    assert tuple(found.labels.values()) == classes.labels
    assert (found.classes, "top.png" in found.captions) == (classes.classes, False)
    with pytest.raises(ValueError, match=r"captions='folders',.*image stands"):
        read_partial_annotations(folder, [folder / "top.png"], "folders")
    alone = read_partial_annotations(folder, [folder / "top.png"])
    assert alone.lines(1) == ("captions: none found",)


def test_the_first_place_there_is_is_taken_unless_another_is_named(folder):
    write_texts(folder, "from text", None, None)
    (folder / "captions.csv").write_text("file,caption\ncat/a.png,from csv")
    (folder / "other.csv").write_text("file,label\ncat/b.jpg,5")
    (folder / "other.txt").write_text('{"file": "cat/a.png", "caption": "from lines"}')

    def caption(where="auto"):
        return read_partial_annotations(folder, images(folder), where).captions.get("cat/a.png")

    assert caption() == "from csv"
    write_jsonl(folder, {"file": "cat/a.png", "caption": "from jsonl"})
    assert caption() == "from jsonl"
    assert caption(folder / "captions.csv") == "from csv"
    assert caption(str(folder / "other.txt")) == "from lines"
    assert caption("none") is None
    assert read_partial_annotations(folder, images(folder), folder / "other.csv").labels == {"cat/b.jpg": 5}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.jsonl", '{"file": "x.png"}', r"captions\.jsonl: 1 lines name no image under .*'x\.png'"),
        ("captions.csv", "file,caption\nx.png,a", r"captions\.csv: 1 lines name no image under .*'x\.png'"),
        ("captions.csv", "file,label\ncat/a.png,9", r"captions\.csv: labels span 9\.\.9: expected 0\.\.0"),
        ("cat/a.txt", "\udcff", r"a\.txt: cannot be read"),
        ("classes.json", "[1]", None),
    ],
)
def test_what_names_no_image_or_cannot_be_read_is_an_error(folder, name, text, message):
    (folder / "classes.json").write_text('["a"]')
    (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    if message is None:  # nothing is numbered, so nobody reads it
        assert read_partial_annotations(folder, images(folder)).labels == {}
        return
    with pytest.raises(ValueError, match=message):
        read_partial_annotations(folder, images(folder))
