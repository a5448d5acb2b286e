"""Fetch a model's configuration and weights from the Hugging Face hub, pinned to one commit; never any code."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, ModelInfo, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, not re-exported by name

from tokenizers_mm.weights import INNER_FOLDERS, WEIGHT_SUFFIXES, CheckpointError

_TIMEOUT = 20  # seconds for the answer about a repository


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A repository's files in the local cache, and the 40-digit commit they belong to."""

    folder: Path
    commit: str


def is_repo_id(text: str) -> bool:
    """Whether `text` can only mean a hub repository: "org/name" or "name", no weights file's name, no local path."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return not text.endswith((*WEIGHT_SUFFIXES, ".json")) and not Path(text).exists()


def check(repo_id: str, revision: str | None = None) -> None:
    """Ask for a repository, and raise the `CheckpointError` of `download` where there is none or nobody can tell."""
    try:
        _ask(repo_id, revision)
    except Exception as error:  # which errors a broken connection raises depends on the hub client's HTTP library
        _cached(repo_id, revision, [], error)


def download(repo_id: str, revision: str | None = None, *, patterns: Sequence[str] | None = None) -> Downloaded:
    """Bring the JSON and weights files of a repository into the hub's local cache, and say which commit they are.

    `revision` is a branch, tag or commit (default: the main branch); everything comes from the one commit that it means
    now. `patterns` choose files (`["vae/*"]`); without them it is the tokenizer's folder of a diffusers pipeline, or
    the files at the top where weights are, less half-precision copies. Pickled weights stay away where safetensors
    stand beside them, and no pattern brings code. Without a connection (or with HF_HUB_OFFLINE=1) the cached commit
    serves.
    Raises `CheckpointError` naming repository, revision, finding and remedy.
    """
    names: list[str] = []
    try:
        info = _ask(repo_id, revision)
        names = _choose((sibling.rfilename for sibling in info.siblings or ()), patterns)
        if not any(name.endswith(WEIGHT_SUFFIXES) for name in names):
            where = f" under {list(patterns)}" if patterns else ""
            raise CheckpointError(
                f"{repo_id} (revision {revision or 'main'}): no weights{where}; expected a file ending in "
                f"{', '.join(WEIGHT_SUFFIXES)}; name another repository, revision or pattern"
            )
        folder = snapshot_download(repo_id, revision=info.sha, allow_patterns=[glob.escape(name) for name in names])
        return Downloaded(folder=Path(folder), commit=str(info.sha))
    except CheckpointError:
        raise
    except Exception as error:  # as above
        return _cached(repo_id, revision, names, error)


def _ask(repo_id: str, revision: str | None) -> ModelInfo:
    validate_repo_id(repo_id)
    return HfApi().model_info(repo_id, revision=revision, timeout=_TIMEOUT)


def _choose(names: Iterable[str], patterns: Sequence[str] | None) -> list[str]:
    """JSON and weights among the files of a repository; one copy of the weights where a folder has both formats."""
    names = list(names)
    if patterns is None:
        matching = _tokenizer_files(names)
    else:
        matching = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    safe = {PurePosixPath(name).parent for name in matching if name.endswith(".safetensors")}
    return [
        name
        for name in matching
        if name.endswith((".json", ".safetensors"))
        or (name.endswith(WEIGHT_SUFFIXES) and PurePosixPath(name).parent not in safe)
    ]


def _tokenizer_files(names: list[str]) -> list[str]:
    """Of a pipeline the folder with the tokenizer, else the files at the top if weights are there, else all."""
    folders = [f"{name}/" for name in INNER_FOLDERS if f"{name}/config.json" in names]
    if "model_index.json" in names and folders:
        names = [name for name in names if name.startswith(folders[0])]
    elif any("/" not in name and name.endswith(WEIGHT_SUFFIXES) for name in names):
        names = [name for name in names if "/" not in name]
    full = {name for name in names if name.endswith(WEIGHT_SUFFIXES) and not _is_half(name)}
    folders_with_full = {PurePosixPath(name).parent for name in full}
    return [name for name in names if not (_is_half(name) and PurePosixPath(name).parent in folders_with_full)]


def _is_half(name: str) -> bool:
    return bool({"fp16", "bf16"} & set(PurePosixPath(name).name.split(".")))


def _refusal(where: str, error: Exception) -> str | None:
    """The line for an answer that the cache cannot replace; None where there was no answer."""
    if isinstance(error, HFValidationError):
        return f"{where}: no valid id of a hub repository; expected 'org/name'; check its spelling or the local path"
    if isinstance(error, GatedRepoError):
        return (
            f"{where}: gated, and this account has no access; expected an accepted licence; accept it on "
            f"{constants.ENDPOINT}/{where.split(' ')[0]} and log in with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{where}: no such revision; expected a branch, tag or commit of the repository; check its spelling"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{where}: no such repository on the hub and no such local path, or it is private; expected 'org/name'; "
            "check its spelling, or log in with `hf auth login`"
        )
    return None


def _cached(repo_id: str, revision: str | None, names: list[str], error: Exception) -> Downloaded:
    """What earlier downloads left of the revision; a branch means the commit that it meant then.

    `names` are the files that are needed, where the hub still told; else there must be weights.
    """
    where = f"{repo_id} (revision {revision or 'main'})"
    refused = _refusal(where, error)
    if refused:
        raise CheckpointError(refused) from error
    offline = isinstance(error, OfflineModeIsEnabled)
    what = "HF_HUB_OFFLINE is set" if offline else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    failed = f"{where}: cannot be downloaded ({what}), and there is no such local path"
    remedy = f"{'unset HF_HUB_OFFLINE' if offline else 'check the connection'}, or `hf download {repo_id}` beforehand"
    try:
        # no patterns: the client would miss the pickles that were left out beside safetensors
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError as absent:
        cache = constants.HF_HUB_CACHE
        raise CheckpointError(f"{failed}; expected it in the cache {cache}; {remedy}") from absent
    missing = [name for name in names if not (folder / name).exists()]
    if not missing and not any(path.suffix in WEIGHT_SUFFIXES and path.exists() for path in folder.rglob("*")):
        missing = ["all weights"]
    if missing:
        raise CheckpointError(f"{failed}; expected a whole copy, but {folder} lacks {', '.join(missing[:4])}; {remedy}")
    return Downloaded(folder=folder, commit=folder.name)
