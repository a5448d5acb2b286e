"""Tokenizers on the Hugging Face hub: `save_pretrained`, `from_pretrained` and `push_to_hub`.

The verbs are those of huggingface_hub's `ModelHubMixin`; what is written is our own folder format with a model card.
That client takes a sixth of the time that torch takes to import, so it is imported where something is sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from tokenizers_mm.checkpoints import Model
    from tokenizers_mm.weights import Provenance

LIBRARY = "tokenizers-mm"
TAGS = ("image-tokenizer",)
# Arguments of `from_pretrained` that the hub client's own settings replace here.
_SETTINGS = {
    "force_download": "delete the repository from the hub's cache (`hf cache rm`)",
    "token": "log in with `hf auth login` or set HF_TOKEN",
    "cache_dir": "set HF_HUB_CACHE",
    "local_files_only": "set HF_HUB_OFFLINE=1",
}


class HubMixin:
    """Base of what can be shared; needs nothing of the constructor, and stores nothing but `provenance`.

    `ModelHubMixin` itself would unlink an old config.json before it asks whether the folder is ours, and parse a
    config.json before our loader can say what is wrong with it; only its upload is taken over.
    """

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

        save(cast("Model", self), save_directory, card=True)
        if push_to_hub:
            return self.push_to_hub(repo_id=repo_id or Path(save_directory).resolve().name, **push_to_hub_kwargs)
        return None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, in one commit, and return its URL; the repository is made if need be.

        options  those of `ModelHubMixin.push_to_hub`, such as private, branch, token, commit_message
        """
        from huggingface_hub import ModelHubMixin

        return ModelHubMixin.push_to_hub(cast("Any", self), repo_id, **options)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **options: Any
    ) -> Self:
        """Load a local folder, or a hub repository at `revision` (branch, tag or commit), in eval mode.

        options  those of `tokenizers_mm.load`, such as dtype

        Raises `CheckpointError` naming folder or repository, finding and remedy.
        """
        for name in _SETTINGS.keys() & options.keys():
            if options.pop(name):
                raise ValueError(f"{name}: not taken here; {_SETTINGS[name]}")
        from tokenizers_mm.checkpoints import CheckpointError, load

        tokenizer = load(pretrained_model_name_or_path, revision=revision, **options)
        if not isinstance(tokenizer, cls):
            found, source = type(tokenizer).__name__, pretrained_model_name_or_path
            raise CheckpointError(
                f"{source}: holds no {cls.__name__}; read it with {found}.from_pretrained, or with tokenizers_mm.load, "
                "which reads every kind"
            )
        return tokenizer

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save_pretrained` writes."""
        from huggingface_hub import ModelCard

        from tokenizers_mm.saving.card import model_card

        return ModelCard(model_card(cast("Model", self)))
