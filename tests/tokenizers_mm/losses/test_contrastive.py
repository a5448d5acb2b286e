"""Contrastive losses: against loops over pairs, equal captions, what they teach, several processes, bad input."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tokenizers_mm.losses.contrastive import caption_ids, contrastive, info_nce, pairwise_sigmoid

CAPTIONS = ["cat", "dog", "cat", "bird", "dog", "cat"]


def vectors(batch=6, dim=5, seed=0):
    image, text = torch.randn(2, batch, dim, generator=torch.Generator().manual_seed(seed)) * 3
    return image.requires_grad_(), text.requires_grad_()


def loops(image, text, captions, *, scale, bias=None):
    """Both losses pair by pair in float64, InfoNCE without a bias."""
    a, b = (F.normalize(x.detach().double()).tolist() for x in (image, text))
    n = len(a)
    cosine = [[sum(x * y for x, y in zip(u, v, strict=True)) for v in b] for u in a]
    if bias is not None:
        signs = [[1 if captions[i] == captions[j] else -1 for j in range(n)] for i in range(n)]
        pairs = [(signs[i][j], scale * cosine[i][j] + bias) for i in range(n) for j in range(n)]
        return sum(math.log1p(math.exp(-sign * logit)) for sign, logit in pairs) / n
    total = 0.0
    for rows in (cosine, [list(column) for column in zip(*cosine, strict=True)]):
        for i, row in enumerate(rows):
            normaliser = math.log(sum(math.exp(scale * c) for c in row))
            right = [j for j in range(n) if captions[j] == captions[i]]
            total += sum(normaliser - scale * row[j] for j in right) / len(right)
    return total / (2 * n)


@pytest.mark.parametrize("captions", [None, CAPTIONS], ids=["all differ", "some equal"])
@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_against_loops_over_pairs(scale, captions):
    image, text = vectors()
    ids = None if captions is None else caption_ids(captions)
    expected = captions or list("abcdef")
    found = info_nce(image, text, scale=scale, ids_B=ids)
    assert found.item() == pytest.approx(loops(image, text, expected, scale=scale), rel=1e-5)
    found = pairwise_sigmoid(image, text, scale=scale, bias=-3.0, ids_B=ids)
    assert found.item() == pytest.approx(loops(image, text, expected, scale=scale, bias=-3.0), rel=1e-5)


def test_they_are_called_by_name_and_read_captions():
    image, text = vectors()
    ids = caption_ids(CAPTIONS)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    assert contrastive("info_nce", image, text, scale=scale) == info_nce(image, text, scale=scale)
    named = contrastive("info_nce", image, text, scale=scale, captions=CAPTIONS)
    assert named == info_nce(image, text, scale=scale, ids_B=ids) != info_nce(image, text, scale=scale)
    named = contrastive("sigmoid", image, text, scale=scale, bias=bias, captions=CAPTIONS)
    assert named == pairwise_sigmoid(image, text, scale=scale, bias=bias, ids_B=ids)
    assert contrastive("sigmoid", image, text, scale=scale) == pairwise_sigmoid(image, text, scale=scale, bias=0)


def test_gradients_reach_images_texts_scale_and_bias():
    image, text = vectors()
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    info_nce(image, text, scale=scale).backward()
    assert min(x.grad.abs().sum() for x in (image, text, scale)) > 0
    pairwise_sigmoid(image, text, scale=scale, bias=bias).backward()
    assert bias.grad.abs() > 0


def test_length_and_autocast_change_nothing():
    image, text = vectors()
    for loss in (lambda a, b: info_nce(a, b, scale=10), lambda a, b: pairwise_sigmoid(a, b, scale=10, bias=-5)):
        expected = loss(image, text)
        torch.testing.assert_close(loss(7 * image, 0.1 * text), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(image, text), expected)


def test_a_sigmoid_pushes_equal_captions_apart_unless_it_knows_them():
    """Two images of one caption, all in place already."""
    directions, ids = torch.eye(2)[[0, 0, 1]], caption_ids(["cat", "cat", "dog"])
    known, unknown = (
        pairwise_sigmoid(directions, directions, scale=30, bias=-15, ids_B=given).item() for given in (ids, None)
    )
    assert known < 1e-4
    assert unknown > 9


def test_a_softmax_spreads_its_target_over_equal_captions():
    ids = caption_ids(["cat", "cat", "dog", "bird"])
    image, text = vectors(4)
    known, unknown = (
        torch.autograd.grad(info_nce(image, text, scale=5, ids_B=given), image)[0] for given in (ids, None)
    )
    assert (known - unknown).abs().max() > 0.01
    # Where equal captions have equal vectors, as a text encoder gives them, there is nothing to know.
    text = text.detach()[[0, 0, 2, 3]]
    known, unknown = (
        torch.autograd.grad(info_nce(image, text, scale=5, ids_B=given), image)[0] for given in (ids, None)
    )
    torch.testing.assert_close(known, unknown)


def test_ids_are_equal_where_captions_are_and_stay_what_they_are():
    ids = caption_ids(CAPTIONS)
    assert [[bool(a == b) for b in ids] for a in ids] == [[a == b for b in CAPTIONS] for a in CAPTIONS]
    assert caption_ids(["cat"]).item() == 1843079001574132759  # the same in every process and every run
    assert caption_ids([f"{i}" for i in range(5000)]).unique().numel() == 5000


def accuracy(contrast, *, shuffled):
    """Learn to map images to texts; the share of 64 new images that find their own text, by chance 1/64."""
    torch.manual_seed(0)
    image = torch.randn(320, 16)
    text = image @ torch.randn(16, 8)
    order = torch.randperm(320) if shuffled else torch.arange(320)
    weight = (0.1 * torch.randn(16, 8)).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for step in range(160):
        rows = torch.arange(64) + 64 * (step % 4)
        loss = contrastive(contrast, image[rows] @ weight, text[order][rows], scale=10.0, bias=-10.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = F.normalize(image[256:] @ weight.detach()) @ F.normalize(text[256:]).T
    return (found.argmax(1) == torch.arange(64)).float().mean().item()


@pytest.mark.parametrize("contrast", ["info_nce", "sigmoid"])
def test_it_learns_which_text_belongs_to_an_image(contrast):
    assert accuracy(contrast, shuffled=False) > 0.9
    assert accuracy(contrast, shuffled=True) < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda i, t: info_nce(i, t[:5], scale=1),
            r"\(6, 5\) and text_BD \(5, 5\): expected one caption for every image",
        ),
        (lambda i, t: info_nce(i[:0], t[:0], scale=1), "at least one"),
        (lambda i, t: pairwise_sigmoid(i, t[:, :4], scale=1, bias=0), "one width"),
        (lambda i, t: info_nce(i[0], t[0], scale=1), "expected one caption for every image"),
        (lambda i, t: info_nce(i, t, scale=1, ids_B=torch.zeros(5).long()), r"ids_B is torch.int64 \(5,\): expected"),
        (lambda i, t: info_nce(i, t, scale=1, ids_B=torch.zeros(6)), r"ids_B is torch.float32"),
        (
            lambda i, t: contrastive("info_nce", i, t, scale=1, captions=["a"]),
            "captions: 1 for 6 images; they must pair",
        ),
        (lambda i, t: contrastive("info_nce", i, t, scale=1, captions=[]), "captions: 0 for 6 images"),
        (lambda i, t: contrastive("clip", i, t, scale=1), "contrast='clip': expected info_nce or sigmoid"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*vectors())


# -------------------------------------------------------------------------------------- several processes

CASES = {
    "info_nce": ("info_nce", False),
    "info_nce, equal captions": ("info_nce", True),
    "sigmoid": ("sigmoid", False),
    "sigmoid, equal captions": ("sigmoid", True),
}
EACH_PROCESS = """
import json, sys, torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tokenizers_mm.losses.contrastive import contrastive

torch.set_num_threads(1)
folder, cases, captions = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
dist.init_process_group("gloo")
rank = dist.get_rank()
data, out, mine = load_file(f"{folder}/data.safetensors"), {}, slice(3 * rank, 3 * rank + 3)
for name, (contrast, known) in cases.items():
    parameters = {key: data[key].requires_grad_() for key in ("of_image", "of_text", "scale", "bias")}
    loss = contrastive(
        contrast, data["image"][mine] @ parameters["of_image"], data["text"][mine] @ parameters["of_text"],
        scale=parameters["scale"], bias=parameters["bias"], captions=captions[mine] if known else None,
    )
    loss.backward()
    out[f"{name}.loss"] = loss.detach()
    for key, parameter in parameters.items():
        out[f"{name}.{key}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
for value in out.values():  # what DistributedDataParallel does with gradients
    dist.all_reduce(value)
    value /= 2
save_file(out, f"{folder}/out-{rank}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_equal_one_with_the_whole_batch(tmp_path, run_two_processes):
    torch.manual_seed(0)
    data = {"image": torch.randn(6, 7), "text": torch.randn(6, 4), "of_image": torch.randn(7, 5)}
    data |= {"of_text": torch.randn(4, 5), "scale": torch.tensor(8.0), "bias": torch.tensor(-4.0)}
    save_file(data, tmp_path / "data.safetensors")
    run_two_processes(EACH_PROCESS, tmp_path, json.dumps(CASES), json.dumps(CAPTIONS))
    first, second = (load_file(tmp_path / f"out-{rank}.safetensors") for rank in (0, 1))
    for name, (contrast, known) in CASES.items():
        parameters = {key: data[key].requires_grad_() for key in ("of_image", "of_text", "scale", "bias")}
        loss = contrastive(
            contrast,
            data["image"] @ parameters["of_image"],
            data["text"] @ parameters["of_text"],
            scale=parameters["scale"],
            bias=parameters["bias"],
            captions=CAPTIONS if known else None,
        )
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        expected = {"loss": loss.detach()} | dict(zip(parameters, gradients, strict=True))
        for key, value in expected.items():
            found = first[f"{name}.{key}"]
            assert torch.equal(found, second[f"{name}.{key}"])
            wanted = torch.zeros_like(found) if value is None else value
            torch.testing.assert_close(
                found, wanted, atol=1e-6, rtol=1e-5, msg=lambda m, at=f"{name} {key}": f"{at}: {m}"
            )
