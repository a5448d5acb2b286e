import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file

from tokenizers_mm.saving import download as hub
from tokenizers_mm.weights import files
from tokenizers_mm.weights.errors import CheckpointError

HTTP = sys.modules[errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0]]  # the client's library: httpx, httpx2
COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache with two commits of org/vae, as the client lays it out: refs, blobs, snapshots of links."""
    folder = tmp_path / "hub"
    model = folder / "models--org--vae"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    (model / "refs" / "v1").write_text(OLDER)
    for value, commit in enumerate((COMMIT, OLDER)):
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True)
        save_file({"w": torch.full((2,), float(value))}, model / "blobs" / f"weights-{commit}")
        (model / "blobs" / f"config-{commit}").write_text("{}")
        (snapshot / "model.safetensors").symlink_to(model / "blobs" / f"weights-{commit}")
        (snapshot / "config.json").symlink_to(model / "blobs" / f"config-{commit}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def offline(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def refusal(repo_id="org/vae", revision=None, **options):
    with pytest.raises(CheckpointError) as caught:
        hub.download(repo_id, revision, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{repo_id} (revision {revision or 'main'}): ")
    assert message.count(";") >= 2, "found; expected; remedy"
    return message


def http_error(kind, status=404):
    response = HTTP.Response(status, request=HTTP.Request("GET", "https://huggingface.co/api/models/org/vae"))
    return kind(f"{status} Client Error.\n\nmany\nlines", response=response)


def online(monkeypatch, names, sha=COMMIT, error=None):
    """A hub that answers with these files, or with an error; returns what was asked of it and of the downloader."""
    asked = []

    def model_info(self, repo_id, *, revision=None, timeout=None):
        asked.append((repo_id, revision))
        if error is not None:
            raise error
        return SimpleNamespace(sha=sha, siblings=[SimpleNamespace(rfilename=name) for name in names])

    monkeypatch.setattr(hub.HfApi, "model_info", model_info)
    return asked


# Without a connection


@pytest.mark.parametrize(
    ("revision", "commit", "value"), [(None, COMMIT, 0), ("main", COMMIT, 0), ("v1", OLDER, 1), (OLDER, OLDER, 1)]
)
def test_offline_a_revision_comes_from_the_cache_with_its_commit(offline, revision, commit, value):
    found = hub.download("org/vae", revision)
    assert found.commit == commit
    assert found.folder == offline / "models--org--vae" / "snapshots" / commit
    assert files.read(found.folder)["w"].tolist() == [value, value]


def test_the_environment_variables_do_the_same_in_a_fresh_process(cache):
    code = "from tokenizers_mm.saving import download as hub; print(hub.download('org/vae', 'v1').commit)"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    root = Path(hub.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, OLDER), done.stderr


@pytest.mark.parametrize(("repo_id", "revision"), [("org/other", None), ("org/vae", "v2"), ("org/vae", "a" * 40)])
def test_offline_without_a_copy(offline, repo_id, revision):
    message = refusal(repo_id, revision)
    assert "HF_HUB_OFFLINE is set" in message
    assert str(offline) in message
    assert "unset HF_HUB_OFFLINE" in message
    assert f"hf download {repo_id}" in message


def test_offline_with_a_copy_that_lost_its_weights(offline):
    for blob in (offline / "models--org--vae" / "blobs").glob("weights-*"):
        blob.unlink()
    assert "lacks all weights" in refusal()


# With one


@pytest.fixture
def downloads(cache, monkeypatch):
    """What the downloader is asked for; it answers with the cache."""
    asked = []
    real = hub.snapshot_download

    def snapshot_download(repo_id, *, revision, allow_patterns, local_files_only=False):
        asked.append((revision, sorted(allow_patterns)))
        return real(repo_id, revision=revision, local_files_only=True, allow_patterns=[])

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return asked


FILES = [
    "README.md", "config.json", "model.safetensors", "pytorch_model.bin", "modeling_vae.py", "setup.sh", "code.pkl",
    "vae/config.json", "vae/diffusion_pytorch_model.bin", "vae/hook.py", "odd[1].json",
]  # fmt: skip


def test_online_everything_comes_from_one_commit_and_no_code_comes(cache, downloads, monkeypatch):
    asked = online(monkeypatch, FILES, sha=OLDER)
    found = hub.download("org/vae", "main")
    assert asked == [("org/vae", "main")]
    assert (found.commit, found.folder.name) == (OLDER, OLDER)
    assert downloads == [(OLDER, ["config.json", "model.safetensors", "odd[[]1].json"])]


@pytest.mark.parametrize("patterns", [["vae/*"], ["vae/*", "*.py"], ["vae/*.json", "vae/*.bin"]])
def test_patterns_narrow_the_files_and_bring_no_code(cache, downloads, monkeypatch, patterns):
    online(monkeypatch, FILES)
    hub.download("org/vae", patterns=patterns)
    assert downloads == [(COMMIT, ["vae/config.json", "vae/diffusion_pytorch_model.bin"])]


@pytest.mark.parametrize(("names", "patterns"), [(["a.py", "config.json"], None), (FILES, ["*.md"]), ([], None)])
def test_a_repository_without_weights(cache, downloads, monkeypatch, names, patterns):
    online(monkeypatch, names)
    assert "no weights" in refusal(patterns=patterns)
    assert downloads == []


@pytest.mark.parametrize(
    ("kind", "status", "found"),
    [
        (errors.RepositoryNotFoundError, 404, "no such repository on the hub and no such local path"),
        (errors.GatedRepoError, 403, "hf auth login"),
        (errors.RevisionNotFoundError, 404, "no such revision"),
    ],
)
def test_refusals_of_the_hub_are_not_answered_from_the_cache(cache, monkeypatch, kind, status, found):
    online(monkeypatch, [], error=http_error(kind, status))
    assert found in refusal()
    assert found in refusal(revision="v1")


def test_gated_files_of_a_visible_repository(cache, monkeypatch):
    online(monkeypatch, FILES)

    def snapshot_download(*args, **options):
        raise http_error(errors.GatedRepoError, 403)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert "https://huggingface.co/org/vae" in refusal()


@pytest.mark.parametrize(
    "error",
    [
        HTTP.ConnectError("no route\nto host"),
        HTTP.ReadTimeout("slow"),
        OSError("broken"),
        http_error(errors.HfHubHTTPError, 503),
    ],
)
def test_a_hub_that_does_not_answer_is_replaced_by_the_cache(cache, monkeypatch, error):
    online(monkeypatch, [], error=error)
    assert hub.download("org/vae").commit == COMMIT
    message = refusal("org/other")
    assert type(error).__name__ in message
    assert "check the connection" in message
    assert "HF_HUB_OFFLINE" not in message


def test_a_download_that_breaks_off_does_not_pass_for_whole(cache, monkeypatch):
    online(monkeypatch, ["config.json", "model-1.safetensors", "model.safetensors"])
    real = hub.snapshot_download

    def snapshot_download(repo_id, *, local_files_only=False, **options):
        if not local_files_only:
            raise HTTP.ReadError("reset")
        return real(repo_id, local_files_only=True, **options)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert "lacks model-1.safetensors" in refusal()
    online(monkeypatch, ["config.json", "model.safetensors"])
    assert hub.download("org/vae").commit == COMMIT


@pytest.mark.parametrize("fails", [False, True])
def test_a_check_asks_and_downloads_nothing(cache, downloads, monkeypatch, fails):
    """It takes what `download` takes: what the hub has, or where nobody answers, the cache; and refuses the rest."""
    asked = online(monkeypatch, FILES, error=HTTP.ConnectError("unreachable") if fails else None)
    hub.check("org/vae", "v1")
    assert asked == [("org/vae", "v1")]
    assert not any(names for _, names in downloads)
    if not fails:
        return
    with pytest.raises(CheckpointError) as error:
        hub.check("org/other")
    assert str(error.value) == refusal("org/other")
    assert "cannot be downloaded (ConnectError: unreachable), and there is no such local path" in str(error.value)


# Names


BAD = ["a/b/c", "org/--x", "../up", "", "org/", "a b", "https://huggingface.co/org/vae", "x" * 97, "org/vae.git"]


@pytest.mark.parametrize("text", BAD)
def test_bad_ids(text, monkeypatch):
    asked = online(monkeypatch, FILES)
    assert not hub.is_repo_id(text)
    assert "no valid id" in refusal(text)
    assert asked == []


def test_a_local_path_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_repo_id("org/vae")
    assert hub.is_repo_id("vae")
    assert not hub.is_repo_id("missing.safetensors")
    assert not hub.is_repo_id("runs/last.ckpt")
    (tmp_path / "org" / "vae").mkdir(parents=True)
    assert not hub.is_repo_id("org/vae")
    assert not hub.is_repo_id("org")


PIPELINE = [
    "model_index.json", "README.md", "ae.safetensors", "transformer/config.json", "transformer/a.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.bin",
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (PIPELINE, ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]),
        (["config.json", "model.safetensors", "teacher/model.safetensors"], ["config.json", "model.safetensors"]),
        (["a.fp16.safetensors", "config.json"], ["a.fp16.safetensors", "config.json"]),
        (["tokenizer/config.json", "tokenizer/a.pth"], ["tokenizer/config.json", "tokenizer/a.pth"]),
    ],
    ids=["pipeline", "top", "only half precision", "folder"],
)
def test_only_the_tokenizer_is_downloaded(cache, downloads, monkeypatch, names, chosen):
    online(monkeypatch, names)
    hub.download("org/vae")
    assert downloads == [(COMMIT, sorted(chosen))]
