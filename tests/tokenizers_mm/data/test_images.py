import io

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_mm.data.images import (
    ImageError,
    Preprocess,
    decode,
    find_images,
    pad_to_multiple,
    resize_shorter,
    to_tensor,
    to_uint8,
    unpad,
)


def _noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _bytes(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _one_bit_png(width, height):
    return _bytes(Image.new("1", (width, height)))


def test_rgb_is_exact_from_bytes_and_from_files(tmp_path):
    pixels = _noise(7, 5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), pixels)
    np.testing.assert_array_equal(decode((tmp_path / "a.png").read_bytes()), pixels)


def test_grey_and_one_bit_become_rgb():
    grey = _noise(4, 4, 1)[..., 0]
    np.testing.assert_array_equal(decode(_bytes(Image.fromarray(grey))), np.repeat(grey[..., None], 3, 2))
    black = decode(_one_bit_png(9, 3))
    assert black.shape == (3, 9, 3)
    assert black.max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # top left quarter
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(_bytes(Image.fromarray(stored.copy()), exif=exif)), upright)


def test_alpha_is_composited_on_the_background():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 200, (0, 255, 51)
    data = _bytes(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode(data)[0], [[255, 255, 255], [200, 0, 0], [244, 204, 204]])
    np.testing.assert_array_equal(decode(data, background=(0, 0, 255))[0, 0], [0, 0, 255])


def test_palette_transparency_is_composited():
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(decode(_bytes(image, transparency=0))[0], [[255, 255, 255], [40, 50, 60]])


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 128 * 257, 65535, 300]], np.uint16)
    decoded = decode(_bytes(Image.fromarray(values)))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 128, 255, 1])


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    data = _bytes(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode(data).min() == 255


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes: header: the file is empty"),
        (b"hello, no image", "header: no image format is recognised"),
        (_bytes(Image.fromarray(_noise(64, 64)), "JPEG")[:-900], "decode: OSError: image file is truncated"),
        (_bytes(Image.fromarray(_noise(64, 64)))[:-900], "decode: OSError"),
        (_one_bit_png(12_000, 12_000), "header: 12000 x 12000 pixels are more than max_pixels=100000000"),
        (_bytes(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "decode: ValueError: pixels of mode F"),
    ],
)
def test_what_cannot_be_used_says_stage_and_reason(data, message, recwarn):
    with pytest.raises(ImageError, match=message):
        decode(data)
    assert not recwarn.list


def test_giant_images_are_small_files_and_the_cap_is_ours():
    assert len(_one_bit_png(12_000, 12_000)) < 20_000
    with pytest.raises(ImageError, match=r"8.*8 pixels.*max_pixels=63"):
        decode(_bytes(Image.fromarray(_noise(8, 8))), max_pixels=63)


def test_missing_file_names_path_and_stage(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: read: No such file"):
        decode(tmp_path / "none.png")


def test_find_images_is_recursive_sorted_and_case_blind(tmp_path):
    for name in ("b/2.PNG", "b/1.jpeg", "a.webp", "c.JPG", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == [
        "a.webp",
        "b/1.jpeg",
        "b/2.PNG",
        "c.JPG",
    ]


def test_find_images_says_what_it_found_instead(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere:.*exist;.*folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="found an empty folder, no images; put"):
        find_images(tmp_path)
    (tmp_path / "x.txt").touch()
    (tmp_path / "y").touch()
    with pytest.raises(ValueError, match=r"found 2.*\(no suffix\),.*images"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match=r"x.txt: is a file; give a folder"):
        find_images(tmp_path / "x.txt")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot.*\(Permission denied\);.*permissions"):
        find_images(tmp_path)


def test_preprocess_resizes_the_shorter_side_and_crops_the_centre():
    torchvision = pytest.importorskip("torchvision.transforms.v2")
    pixels = _noise(50, 83)
    ours = Preprocess(24, 8)(pixels)
    reference = torchvision.Compose(
        [torchvision.Resize(24, torchvision.InterpolationMode.BICUBIC), torchvision.CenterCrop(24)]
    )(Image.fromarray(pixels))
    np.testing.assert_array_equal(ours, np.asarray(reference))


def test_preprocess_at_native_size_crops_to_a_multiple():
    pixels = _noise(37, 50)
    np.testing.assert_array_equal(Preprocess(None, 8)(pixels), pixels[2:34, 1:49])
    with pytest.raises(ValueError, match=r"50.*37 pixels.*multiple.*64"):
        Preprocess(None, 64)(pixels)
    with pytest.raises(ValueError, match="size=100 is not a multiple of 16"):
        Preprocess(100, 16)
    with pytest.raises(ValueError, match="multiple=0: expected at least 1"):
        Preprocess(None, 0)


def test_preprocess_json_tells_choices_apart():
    texts = {
        Preprocess(32, 8).to_json(),
        Preprocess(64, 8).to_json(),
        Preprocess(None, 8).to_json(),
        Preprocess(32).to_json(),
    }
    assert len(texts) == 4
    assert Preprocess(32, 8).to_json() == (
        '{"crop": "centre", "filter": "bicubic-antialias", "multiple": 8, "size": 32}'
    )


def test_a_sliver_is_refused_before_it_fills_the_memory():
    with pytest.raises(ValueError, match=r"1.*9000 pixels.*become 256.*2304000:"):
        resize_shorter(np.zeros((9000, 1, 3), np.uint8), 256)


def test_tensor_round_trip_is_exact_for_all_levels():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    tensor = to_tensor(levels)
    assert tensor.shape == (3, 16, 16)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(tensor[None])[0], torch.tensor(levels).permute(2, 0, 1))
    assert to_uint8(torch.tensor([-3.0, 3.0, -0.001])).tolist() == [0, 255, 127]


@pytest.mark.parametrize(("height", "width"), [(13, 17), (16, 16), (2, 5), (1, 1)])
def test_padding_is_undone(height, width):
    image = torch.rand(2, 3, height, width)
    padded, size = pad_to_multiple(image, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert torch.equal(unpad(padded, size), image)
    assert padded.min() >= image.min()


def test_padding_mirrors():
    padded, _ = pad_to_multiple(torch.arange(5.0).reshape(1, 1, 1, 5).expand(1, 1, 5, 5), 8)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    with pytest.raises(ValueError, match="multiple=0"):
        pad_to_multiple(padded, 0)
