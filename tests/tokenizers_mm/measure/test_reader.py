"""The reader reads originals, and nothing that is not there."""

import pytest
import torch

from tokenizers_mm.data.sets.words import words
from tokenizers_mm.measure.reader import Reader, character_accuracy, edit_distance, train_reader


class Fixed(Reader):
    """Sees what it is told."""

    def __init__(self, texts):
        super().__init__(width=1)
        self.texts = texts

    def read(self, image_BCHW, batch_size=256):
        return self.texts


@pytest.fixture(scope="module")
def learned():
    """Sixteen pictures and a reader that has seen no others."""
    return words("train", 16), train_reader(steps=100, batch_size=16, pool=16)


def test_a_reader_reads_its_pictures_and_a_fresh_one_does_not(learned):
    data, reader = learned
    assert character_accuracy(reader, data.tensor(), data.captions) > 0.95
    torch.manual_seed(0)
    assert character_accuracy(Reader(), data.tensor(), data.captions) < 0.1
    shuffled = data.tensor().roll(5, 0)
    assert character_accuracy(reader, shuffled, data.captions) < 0.3
    assert character_accuracy(reader, torch.zeros_like(shuffled), data.captions) < 0.1


def test_colours_and_size_do_not_matter(learned):
    data, reader = learned
    image_BCHW = data.tensor()
    for other in (-image_BCHW, image_BCHW.flip(1), 0.4 * image_BCHW + 0.3):
        assert character_accuracy(reader, other, data.captions) > 0.95
    large = torch.nn.functional.interpolate(image_BCHW, scale_factor=2, mode="bicubic")
    assert character_accuracy(reader, large, data.captions) > 0.9


def test_reading_leaves_the_mode_alone_and_ignores_batches(learned):
    data, reader = learned
    assert not reader.training
    assert reader.read(data.tensor(), batch_size=3) == reader.read(data.tensor())
    reader.train()
    assert reader.read(data.tensor()) == reader.eval().read(data.tensor())
    log_BTV = reader(data.tensor())
    assert log_BTV.shape == (16, 48, 37)
    torch.testing.assert_close(log_BTV.exp().sum(-1), torch.ones(16, 48))


def test_training_is_repeatable_and_leaves_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seen = []
    one, other = (train_reader(steps=3, batch_size=4, pool=8, size=(16, 32)) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    train_reader(steps=50, batch_size=2, pool=2, size=(16, 32), progress=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [50]


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("", "", 0), ("cat", "cat", 0), ("cat", "cut", 1), ("cat", "cart", 1), ("kitten", "sitting", 3), ("abc", "", 3)],
)
def test_edit_distance(one, other, distance):
    assert edit_distance(one, other) == edit_distance(other, one) == distance


def test_accuracy_is_counted_over_characters():
    image_BCHW = torch.zeros(3, 3, 32, 96)
    texts = ("cat", "horse", "ox")
    assert character_accuracy(Fixed(["cat", "horse", "ox"]), image_BCHW, texts) == 1
    assert character_accuracy(Fixed(["cut", "horse", ""]), image_BCHW, texts) == pytest.approx(1 - 3 / 10)
    assert character_accuracy(Fixed(["", "", ""]), image_BCHW, texts) == 0
    assert character_accuracy(Fixed(["x" * 20, "", ""]), image_BCHW, texts) == 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["cat"], "texts: 1 for 2 pictures; they must pair one to one"),
        (["cat", ""], r"texts\[1\]='': expected one or more of"),
        (["cat", "Dog"], r"texts\[1\]='Dog'"),
    ],
)
def test_texts_that_cannot_be_compared(texts, message):
    with pytest.raises(ValueError, match=message):
        character_accuracy(Reader(width=1), torch.zeros(2, 3, 32, 96), texts)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"image_BCHW has shape \(2, 1, 32, 96\)"):
        Reader(width=1)(torch.zeros(2, 1, 32, 96))
    with pytest.raises(ValueError, match="width=0"):
        Reader(width=0)
    with pytest.raises(ValueError, match="steps=0"):
        train_reader(steps=0)


@pytest.mark.slow
def test_originals_are_read():
    reader = train_reader()
    data = words("test", 2000)
    assert character_accuracy(reader, data.tensor(), data.captions) >= 0.98
    assert character_accuracy(reader, data.tensor().roll(7, 0), data.captions) < 0.2
