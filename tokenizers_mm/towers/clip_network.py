"""open_clip models: an image tower whose pooled vector lives in one space with the text tower's.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020.

Shape letters: B batch, C image channels, H and W pixels, D channels, h and w positions.
"""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_mm.towers.captions import checked_captions
from tokenizers_mm.weights import file_sha256, tensors_sha256, unfetched

__all__ = ["ClipNetwork", "ClipTokenizer", "clip_tower", "open_clip_model"]

Size = tuple[int, int]
_SCHEMAS = ("hf-hub:", "local-dir:")


class ClipTokenizer:
    """Token ids of captions by open_clip's own tokenizer, built when first needed: some need a package and the hub."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ids: Callable[[list[str]], Tensor] | None = None

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Ids [B, T]; `ValueError` for captions that are no texts or empty, and for a tokenizer that cannot be had."""
        texts = checked_captions(captions)
        if self._ids is None:
            import open_clip

            model = _split(self.name)[0]
            try:
                self._ids = open_clip.get_tokenizer(model)
            except Exception as error:  # a package that is not installed, or anything a broken connection raises
                reason = " ".join(str(error).split())[:300]
                raise ValueError(
                    f"name='open_clip:{self.name}': its text tokenizer could not be had ({type(error).__name__}: "
                    f"{reason}); run `pip install transformers` and connect to the network once"
                ) from error
        return self._ids(texts)


class ClipNetwork(nn.Module):
    """Features of an open_clip model; images are normalised already.

    layer  block of the image tower whose output is taken as it is, negative from the end; None takes the last one's
           after the final norm, where the tower norms positions at all
    """

    def __init__(self, model: Any, name: str, layer: int | None, statistics: tuple[Any, Any]) -> None:
        super().__init__()
        visual = model.visual
        depth = _depth(visual)
        if layer is not None and not -depth <= layer < depth:
            raise ValueError(f"layer={layer}: this network has {depth}, 0 to {depth - 1}, or -{depth} to -1")
        self.model, self.layer = model, layer
        self.norm = layer is None and getattr(visual, "attn_pool", None) is None
        height, width = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        self.input_size: Size = (int(height), int(width))
        self.mean, self.std = (tuple(float(value) for value in values) for values in statistics)
        self.ids = ClipTokenizer(name)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, D, h, w] without the class token, and the projected embedding of the image, [B, D']."""
        index = -1 if self.layer is None else self.layer
        out = self.model.visual.forward_intermediates(
            x_BCHW, indices=[index], normalize_intermediates=self.norm, output_fmt="NCHW"
        )
        return out["image_intermediates"][0], out["image_features"]

    def texts(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """Projected embeddings [B, D'] of captions."""
        text_BD: Tensor = self.model.encode_text(self.ids(captions).to(device))
        return text_BD


def clip_tower(
    name: str, layer: int | None, size: Size | None, weights: Path | None, random_init: bool
) -> tuple[ClipNetwork, str]:
    """Both towers of MODEL[/PRETRAINED] for images of `size` (default: its own), and the SHA-256 of the weights."""
    model, statistics, digest = open_clip_model(name, size, weights, random_init)
    return ClipNetwork(model, name, layer, statistics), digest


def open_clip_model(
    name: str, size: Size | None, weights: Path | None, random_init: bool
) -> tuple[Any, tuple[Any, Any], str]:
    """The model, the mean and std its images are normalised by, and the SHA-256 of its weights."""
    import open_clip

    architecture, tag = _split(name)
    _check_name(name, architecture, tag)
    if weights is None and not random_init and not tag and not architecture.startswith(_SCHEMAS):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none; pass weights=PATH"
        raise ValueError(f"name='open_clip:{name}': which weights? Say open_clip:{architecture}/TAG; known: {tags}")
    statistics = _statistics(architecture, tag, weights)
    published = weights is None and not random_init
    options: dict[str, Any] = {"pretrained_text": False, "load_weights": published, "require_pretrained": published}
    if tag and (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("quick_gelu"):
        options["force_quick_gelu"] = True  # open_clip only warns, and gives wrong features
    with _quiet():
        try:
            on_timm = "timm_model_name" in open_clip.get_model_config(architecture)["vision_cfg"]
            if size is not None and not on_timm:
                options["force_image_size"] = size
            model = open_clip.create_model(architecture, tag if published else None, **options)
        except Exception as error:  # which errors a broken connection raises depends on the HTTP library
            raise unfetched(f"open_clip:{name}", error) from error
        if weights is not None and not random_init:
            _load(model, Path(weights))
    if size is not None and on_timm:
        model.visual.set_input_size(size)  # after loading: the file has the positions of the network's own size
    if statistics is None:
        preprocess = model.visual.preprocess_cfg
        statistics = preprocess["mean"], preprocess["std"]
    return model, statistics, file_sha256(weights) if weights and not random_init else tensors_sha256(model)


def _split(name: str) -> tuple[str, str]:
    if name.startswith(_SCHEMAS):
        return name, ""
    architecture, _, tag = name.partition("/")
    return architecture, tag


def _check_name(name: str, architecture: str, tag: str) -> None:
    import open_clip

    if architecture.startswith(_SCHEMAS):
        return
    models = open_clip.list_models()
    if architecture not in models:
        close = difflib.get_close_matches(architecture, models, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"name='open_clip:{name}': no such model{hint}; see open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags:
        raise ValueError(f"name='open_clip:{name}': {architecture} has no weights {tag!r}; known: {', '.join(tags)}")


def _statistics(architecture: str, tag: str, weights: Path | None) -> tuple[Any, Any] | None:
    """Mean and std of the pixels: a file does not say them, so its tag must, where weights of the model disagree."""
    import open_clip

    if architecture.startswith(_SCHEMAS):
        return None
    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, one) for one in tags]
    found = {(tuple(config["mean"]), tuple(config["std"])) for config in configs if config.get("mean")}
    if len(found) > 1 and weights is not None:
        raise ValueError(
            f"weights={weights}: weights of {architecture} differ in the mean and std of their pixels; name those that "
            f"the file holds, open_clip:{architecture}/TAG; known: {', '.join(tags)}"
        )
    return found.pop() if len(found) == 1 else None


def _depth(visual: Any) -> int:
    if hasattr(visual, "trunk"):
        return len(visual.trunk.feature_info)
    return len(visual.transformer.resblocks) if hasattr(visual, "transformer") else 5


def _load(model: Any, path: Path) -> None:
    from open_clip.factory import load_checkpoint

    try:
        load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:  # anything a file can do wrong: its reader is open_clip's
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: not the weights of this network ({reason}); give exactly its weights") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's remarks out of a user's terminal: it logs to the root logger, and sets that up by doing so."""
    root, handler = logging.getLogger(), logging.NullHandler()
    disabled = root.disabled
    root.addHandler(handler)
    root.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        root.removeHandler(handler)
        root.disabled = disabled
