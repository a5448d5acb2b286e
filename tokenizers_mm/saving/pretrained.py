"""Tokenizers on the Hugging Face hub: `save_pretrained`, `from_pretrained` and `push_to_hub`.

The verbs are those of huggingface_hub's `ModelHubMixin`; what is written is our own folder format with a model card.
That client takes a sixth of the time that torch takes to import, so it is imported where something is sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, cast

import torch

from tokenizers_mm.saving.local import OF_A_RUN, is_ours, listing, locate, own_config, read_config, refuse_path
from tokenizers_mm.saving.saved import Saved
from tokenizers_mm.weights import INNER_FOLDERS, TOWERS, CheckpointError, Provenance

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# Arguments of `from_pretrained` that the hub client's own settings replace here.
_SETTINGS = {
    "force_download": "delete the repository from the hub's cache (`hf cache rm`)",
    "token": "log in with `hf auth login` or set HF_TOKEN",
    "cache_dir": "set HF_HUB_CACHE",
    "local_files_only": "set HF_HUB_OFFLINE=1",
}
_OF_LOAD = "it says how files of others are read, and tokenizers_mm.load reads those"


class HubMixin:
    """Base of what is `Saved`: the verbs of the hub; needs nothing of the constructor, stores nothing but `provenance`.

    `ModelHubMixin` itself would unlink an old config.json before it asks whether the folder is ours, and parse a
    config.json before our loader can say what is wrong with it; only its upload is taken over.
    """

    kind: ClassVar[str]
    provenance: Provenance | None = None

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write the tokenizer and a model card into a folder; with `push_to_hub` also to the hub, and return that URL.

        repo_id             of the hub repository (default: the folder's name)
        push_to_hub_kwargs  for `push_to_hub`, such as private, branch, commit_message

        A README.md that is not generated stays as it is. Raises `CheckpointError` for a folder that holds other things.
        """
        for name, value in (("config", config), ("model_card_kwargs", model_card_kwargs)):
            if value:
                raise ValueError(f"{name}={value!r}: the tokenizer writes its own; leave it out, edit README.md after")
        from tokenizers_mm.saving.folder import save

        save(cast("Saved", self), save_directory, card=True)
        if push_to_hub:
            return self.push_to_hub(repo_id=repo_id or Path(save_directory).resolve().name, **push_to_hub_kwargs)
        return None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, in one commit, and return its URL; the repository is made if need be.

        options  those of `ModelHubMixin.push_to_hub`, such as private, branch, token, commit_message
        """
        from huggingface_hub import ModelHubMixin

        return ModelHubMixin.push_to_hub(cast("Any", self), repo_id, **options)

    def identity(self) -> dict[str, Any]:
        """Of `Saved`: kind and options."""
        return {"kind": self.kind, **cast("Saved", self).options()}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> Self:
        """Load what `save_pretrained` wrote, in eval mode: a folder, a run folder, or a hub repository.

        revision  branch, tag or commit of a hub repository
        dtype     of the nets' weights; codebooks and statistics stay float32

        What others wrote is for `tokenizers_mm.load`. Raises `CheckpointError` naming folder or repository, finding and
        remedy.
        """
        for name, value in settings.items():
            if name not in _SETTINGS or value:
                raise ValueError(f"{name}: not taken here; {_SETTINGS.get(name, _OF_LOAD)}")
        from tokenizers_mm.saving.folder import load

        folder = _own_folder(pretrained_model_name_or_path, revision)
        kind = own_config(folder)["kind"]
        tokenizer = load(folder, {cls.kind: cast("type[Saved]", cls)}) if kind == cls.kind else None
        if not isinstance(tokenizer, cls):
            found = f"a tokenizer of kind {kind}" if tokenizer is None else f"a {type(tokenizer).__name__}"
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: holds no {cls.__name__}, but {found}; read it with "
                "tokenizers_mm.load, which reads every kind"
            )
        return cast("Self", cast("Any", tokenizer).to(dtype))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save_pretrained` writes."""
        from huggingface_hub import ModelCard

        from tokenizers_mm.saving.card import model_card

        return ModelCard(model_card(cast("Saved", self)))


def _own_folder(source: Path | str, revision: str | None) -> Path:
    """The folder with our config.json that a source means; `CheckpointError` saying what it is where it is none."""
    path, _ = locate(source, revision)
    for folder in (path, path / OF_A_RUN):
        if is_ours(read_config(folder) or {}):
            return folder
    _refuse(source, path)


def _refuse(source: Path | str, path: Path) -> NoReturn:
    if not path.exists():
        if str(source).partition(":")[0] not in TOWERS:
            refuse_path(source)
        found = "the name of a pretrained network"
    elif path.is_file():
        found = "a file"
    elif about := read_config(path):
        name = about.get("_class_name")
        found = f"a diffusers folder ({name})" if name else "a folder of another library"
    else:
        inner = next((name for name in INNER_FOLDERS if read_config(path / name)), None)
        found = f"a diffusers pipeline, with {inner}/" if inner else f"a folder without config.json ({listing(path)})"
    raise CheckpointError(f"{source}: {found}, and not what save_pretrained wrote; read it with tokenizers_mm.load")
