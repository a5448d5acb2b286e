"""Two tokenizers as one: a semantic half that knows what is in the picture, a perceptual half that can draw it.

Channel-wise (MUSE-VL, https://arxiv.org/abs/2411.17762; Show-o2, https://arxiv.org/abs/2506.15564) a position holds
the vectors, or the codes, of both. Sequence-wise (ILLUME+, https://arxiv.org/abs/2504.01934; BAGEL,
https://arxiv.org/abs/2505.14683) all semantic positions come first, then all perceptual ones.

Shape letters: B batch, C channels, H and W pixels, N positions, S streams, D channels of a position's vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from quantizers import Product
from tokenizers_mm.api import Quantizer, Tokenizer, Tokens
from tokenizers_mm.blocks import WithLatents
from tokenizers_mm.config import parse
from tokenizers_mm.geometry import FeatureGrid, match_grid, single_grids
from tokenizers_mm.models.autoencoder import Autoencoder
from tokenizers_mm.models.fused_config import FusedConfig, Half, How
from tokenizers_mm.models.fused_sequence import in_sequence, out_of_sequence, widened
from tokenizers_mm.models.fused_spec import channel_spec, same_image, sequence_spec
from tokenizers_mm.saving import CardFacts, CardSource, HubMixin, check_saved, content, describe
from tokenizers_mm.semantics import Semantics, mean_semantics, semantics_of
from tokenizers_mm.towers import Tower, weight_count
from tokenizers_mm.traits import downsampling_of, for_images, quantizer_of, takes_one_size
from tokenizers_mm.weights import OPTIONS_MAY_DIFFER, CheckpointError, load_strict

__all__ = ["KINDS", "Fused", "Model"]


class Fused(WithLatents, HubMixin):
    """A `Tokenizer` made of two: `decode` is the perceptual half's, `semantics` and `text_features` the semantic one's.

    Both halves give codes, or both give latents.

    channel   one grid, the perceptual one. Semantic latents are interpolated to it (bilinear, averaged where it is
              coarser) and brought to unit variance again by statistics that `calibrate` measures; codes cannot be
              interpolated, so discrete halves need equal grids. Streams and channels: semantic ones first.
    sequence  layout "parts": the semantic grid, then the perceptual one, of one image size. The shorter vectors are
              filled up with zeros. Perceptual codes come after the semantic ones in one vocabulary, stream by stream.

    A tower resizes images itself, so it is taken for images of the perceptual half's size, whatever its own was.
    Raises `ValueError` for halves that do not go together. Only `nn.Module` halves are saved.
    """

    kind = "fused"
    latents_name = "semantic"
    semantic: Tokenizer
    perceptual: Tokenizer

    def __init__(self, semantic: Tokenizer, perceptual: Tokenizer, how: How = "channel") -> None:
        super().__init__()
        if how not in ("channel", "sequence"):
            raise ValueError(f"how={how!r}: expected channel or sequence")
        self.semantic, self.perceptual, self.how = for_images(semantic, perceptual.spec.image_size), perceptual, how
        self.semantic_spec = same_image(self.semantic.spec, perceptual.spec)
        self.perceptual_spec = perceptual.spec
        self.spec = (channel_spec if how == "channel" else sequence_spec)(self.semantic_spec, self.perceptual_spec)
        if how == "channel" and not self.spec.discrete:
            self.register_statistics(semantic.spec.dim)

    @property
    def downsampling(self) -> int:
        """Sides of images are multiples of this many pixels."""
        return math.lcm(downsampling_of(self.semantic), downsampling_of(self.perceptual))

    @property
    def takes_one_size(self) -> bool:
        """Whether images have to be of the spec's size: one half takes no others."""
        return any(takes_one_size(half) for half in (self.semantic, self.perceptual))

    @property
    def quantizer(self) -> Quantizer | None:
        """The quantizers of both halves side by side; None for latents, for a sequence, and where a half has none.

        None as well where they cannot be told apart: two scales of grids, or one quantizer that serves both halves.
        """
        parts = [quantizer_of(half) for half in (self.semantic, self.perceptual)]
        apart = [part for part in parts if part is not None and part.pointwise]
        if self.how == "sequence" or len(apart) < 2 or apart[0] is apart[1]:
            return None
        return Product(apart)

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tokens:
        """Tokens of both halves in one; `ValueError` for image sizes that one of them does not take."""
        if self.how == "sequence":
            self.spec.resized((image_BCHW.shape[2], image_BCHW.shape[3]))
        return self.join(self.semantic.encode(image_BCHW), self.perceptual.encode(image_BCHW))

    def join(self, semantic: Tokens, perceptual: Tokens) -> Tokens:
        """Tokens of one from tokens of the two halves, for the same images."""
        semantic.check(self.semantic_spec)
        perceptual.check(self.perceptual_spec)
        if len(semantic) != len(perceptual):
            raise ValueError(f"{len(semantic)} semantic images and {len(perceptual)} perceptual ones: they must pair")
        if self.how == "sequence":
            return in_sequence((semantic, perceptual), (self.semantic_spec, self.perceptual_spec), self.spec)
        if self.spec.discrete:
            if semantic.grid != perceptual.grid:
                raise ValueError(
                    f"semantic grid {semantic.grid}, perceptual grid {perceptual.grid}: codes cannot be interpolated; "
                    "use images for which both grids agree, or how='sequence'"
                )
            return Tokens(codes_BNS=torch.cat([semantic.data, perceptual.data], 2), grid=perceptual.grid)
        return self._side_by_side(semantic, perceptual)

    def halves(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """Semantic tokens and perceptual tokens; the inverse of `join`, but for semantic latents it interpolated.

        Interpolated latents stay on the grid of the tokens. Raises `ValueError` where a position of a discrete
        sequence holds a code of the other half.
        """
        tokens.check(self.spec)
        if self.how == "sequence":
            return out_of_sequence(tokens, (self.semantic_spec, self.perceptual_spec), self.spec)
        if self.spec.discrete:
            parts = torch.split(tokens.data, [self.semantic_spec.streams, self.perceptual_spec.streams], 2)
            return Tokens(codes_BNS=parts[0], grid=tokens.grid), Tokens(codes_BNS=parts[1], grid=tokens.grid)
        semantic_BND, perceptual_BND = torch.split(tokens.data, [self.semantic_spec.dim, self.perceptual_spec.dim], 2)
        mean_D, std_D = self.statistics
        semantic_BND = semantic_BND * std_D + mean_D
        return Tokens(latents_BND=semantic_BND, grid=tokens.grid), Tokens(latents_BND=perceptual_BND, grid=tokens.grid)

    @torch.no_grad()
    def embed(self, tokens: Tokens) -> Tensor:
        """Vectors [B, N, D] of both halves: side by side, or one after the other with zeros behind the shorter ones."""
        if not self.spec.discrete:
            return tokens.check(self.spec).data
        semantic, perceptual = self.halves(tokens)
        parts = [self.semantic.embed(semantic), self.perceptual.embed(perceptual)]
        if self.how == "channel":
            return torch.cat(parts, 2)
        return torch.cat([widened(part_BND, self.spec.dim) for part_BND in parts], 1)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images [B, C, H, W] that the perceptual half draws; the semantic half has no say in them."""
        return self.perceptual.decode(self.halves(tokens)[1])

    def semantics(self, image_BCHW: Tensor) -> Semantics:
        """What the semantic half knows about images in [-1, 1]."""
        return semantics_of(self.semantic, image_BCHW)

    @torch.no_grad()
    def token_semantics(self, tokens: Tokens) -> Semantics:
        """What the semantic half reads off tokens; where it reads images only, its vectors and their mean."""
        semantic, half = self.halves(tokens)[0], self.semantic
        if hasattr(half, "token_semantics"):
            read: Semantics = half.token_semantics(semantic)
            return read
        return mean_semantics(half.embed(semantic), semantic.grid)

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Vectors [B, D] of captions in the space of pooled semantics; `ValueError` without a text encoder."""
        half: Any = self.semantic
        if not hasattr(half, "text_features"):
            raise ValueError("text_features: the semantic half has no text encoder")
        text_BD: Tensor = half.text_features(captions)
        return text_BD

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Measure the latent statistics of both halves, so that `encode` gives zero mean and unit variance."""
        kept = list(batches)
        for half in (self.semantic, self.perceptual):
            if hasattr(half, "calibrate"):
                half.calibrate(kept)
        if self.how == "channel" and not self.spec.discrete:
            self.set_statistics(0.0, 1.0)
            self.measure_statistics(self.encode(image_BCHW).data[..., : self.semantic_spec.dim] for image_BCHW in kept)

    def options(self) -> dict[str, Any]:
        """JSON-able, as `FusedConfig`; `CheckpointError` for a half that cannot be saved."""
        return {"how": self.how, "semantic": describe(self.semantic), "perceptual": describe(self.perceptual)}

    def identity(self) -> dict[str, Any]:
        """Kind, how, and the identity of both halves, whose provenance is no part of it."""
        semantic, perceptual = check_saved(self.semantic), check_saved(self.perceptual)
        return {
            "kind": self.kind,
            "how": self.how,
            "semantic": semantic.identity(),
            "perceptual": perceptual.identity(),
        }

    def card(self) -> CardFacts:
        """What stands on its model card beside its geometry: both halves, and the sources of both."""
        about = {name: check_saved(half).card() for name, half in self._halves()}
        titles = {f"{name} half": half.title for name, half in about.items()}
        own = (CardSource(provenance=self.provenance),)
        of_halves = (
            replace(source, part=f"{source.part} of the {name} half")
            for name, half in about.items()
            for source in half.sources
        )
        return CardFacts(
            title=f"Image tokenizer of two halves, {self.how}-wise: {content(self.spec)}",
            tag=self.kind,
            facts=titles | {"parameters": f"{weight_count(self) / 1e6:.2f} M"},
            sources=tuple(of_halves) if self.provenance is None else own,
            decodes=about["perceptual"].decodes,
            reads_texts=about["semantic"].reads_texts,
        )

    @classmethod
    def rebuild(cls, options: Any, state: Mapping[str, Tensor], *, where: str, weights: str) -> Self:
        """The tokenizer that `options` and `state_dict` gave, around these very tensors, in eval mode.

        Raises `CheckpointError` or `ConfigError` that start with `where` for the options, with `weights` for the state.
        """
        config = parse(FusedConfig, options, where)

        def rebuilt(name: str, half: Half) -> Tokenizer:
            inside = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            return half.rebuild(KINDS, inside, where=f"{where}.{name}", weights=f"{weights}, {name} half")

        semantic, perceptual = rebuilt("semantic", config.semantic), rebuilt("perceptual", config.perceptual)
        try:
            model = cls(semantic, perceptual, config.how)
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
        load_strict(model, state, weights, remedy=OPTIONS_MAY_DIFFER, assign=True)
        return model.eval()

    def _halves(self) -> list[tuple[str, Tokenizer]]:
        return [("semantic", self.semantic), ("perceptual", self.perceptual)]

    def _side_by_side(self, semantic: Tokens, perceptual: Tokens) -> Tokens:
        semantic_BND = semantic.data
        if semantic.grid != perceptual.grid:
            semantic_BND = match_grid(semantic_BND, _raster(semantic), _raster(perceptual))
        mean_D, std_D = self.statistics
        semantic_BND = (semantic_BND - mean_D) / std_D
        return Tokens(latents_BND=torch.cat([semantic_BND, perceptual.data], 2), grid=perceptual.grid)


Model: TypeAlias = Autoencoder | Tower | Fused
# Every class that is saved, by the name of its kind; a half of a fused tokenizer may be any of them.
KINDS: dict[str, type[Autoencoder] | type[Tower] | type[Fused]] = {
    made.kind: made for made in (Autoencoder, Tower, Fused)
}


def _raster(tokens: Tokens) -> FeatureGrid:
    first, *others = single_grids(tokens.grid)
    if others or len(first) != 2:
        raise ValueError(f"grid={tokens.grid}: only a raster (rows, columns) can be interpolated")
    return first
