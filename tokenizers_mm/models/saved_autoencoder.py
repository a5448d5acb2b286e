"""An autoencoder in a folder: its options, its identity, its model card, and taking tensors that are already there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

import quantizers
from quantizers import Quantizer
from tokenizers_mm.api import TokenSpec
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.models.autoencoder_config import AutoencoderConfig
from tokenizers_mm.models.parts import build_parts
from tokenizers_mm.saving import CardFacts, CardSource, HubMixin, latent_statistics, title_of
from tokenizers_mm.towers import weight_count
from tokenizers_mm.weights import OPTIONS_MAY_DIFFER, CheckpointError, load_strict

# Options that configurations written before them do not have, and what stands for none of it.
_LATER: dict[str, Any] = {"decoder_net": None, "noise": 0.0, "semantic": None}


class SavedAutoencoder(nn.Module, HubMixin):
    """What `saving` asks of an autoencoder (`Saved`)."""

    kind = "autoencoder"
    config: AutoencoderConfig
    spec: TokenSpec
    downsampling: int
    encoder: nn.Module
    bottleneck: Quantizer
    decoder: nn.Module
    latent_mean_D: Tensor
    latent_std_D: Tensor

    def options(self) -> dict[str, Any]:
        """JSON-able configuration that builds the same architecture again, of `AutoencoderConfig`.

        Options that came later are left out where they say nothing, so that older tokenizers keep their fingerprints.
        """
        options = asdict(self.config) | {"bottleneck": self.bottleneck.options()}
        return {key: value for key, value in options.items() if key not in _LATER or value != _LATER[key]}

    def identity(self) -> dict[str, Any]:
        """The options alone, as fingerprints were made when there was one kind of tokenizer only."""
        return self.options()

    def card(self) -> CardFacts:
        """What stands on its model card beside its geometry: the nets and their sizes, statistics of the latents."""
        net, other, head = self.config.net, self.config.decoder_net, self.config.semantic
        total, *halves = (f"{weight_count(part) / 1e6:.2f} M" for part in (self, self.encoder, self.decoder))
        facts = {
            "bottleneck": self.bottleneck.kind,
            "networks": net.kind if other is None else f"{net.kind}, decoder {other.kind}",
            "parameters": f"{total} (encoder {halves[0]}, decoder {halves[1]})",
        }
        if head is not None:
            texts = "no text encoder" if head.text is None else "text encoder beside it"
            facts["semantics"] = f"features of {head.dim} channels, {texts}"
        return CardFacts(
            title=title_of(self.spec, self.downsampling),
            tag=self.bottleneck.kind,
            facts=facts,
            sources=(CardSource(provenance=self.provenance),),
            reads_texts=head is not None and head.text is not None,
            sections=() if self.spec.discrete else (latent_statistics(self.latent_mean_D, self.latent_std_D),),
        )

    @classmethod
    def rebuild(cls, options: Any, state: Mapping[str, Tensor], *, where: str, weights: str) -> Self:
        """The tokenizer that `options` and `state_dict` gave, around these very tensors, in eval mode.

        Raises `CheckpointError` that starts with `where` for the options, with `weights` for the state.
        """
        return cls.empty(options, where).adopt(state, weights)

    @classmethod
    def empty(cls, options: Any, where: str) -> Self:
        """An autoencoder of these options whose tensors have no memory, for `adopt`.

        Raises `CheckpointError` that starts with `where`.
        """
        try:
            config = parse(AutoencoderConfig, options, where)
            with torch.device("meta"):
                return cls(config, *build_parts(config))
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error

    def adopt(self, state: Mapping[str, Tensor], where: Path | str) -> Self:
        """Take the very tensors of a state dict, mapped from a file or shared with another module; in eval mode.

        Codebooks of half precision become float32, in which codes are decided. Raises the `CheckpointError` of
        `load_strict` that starts with `where`.
        """
        load_strict(self, state, where, remedy=OPTIONS_MAY_DIFFER, assign=True)
        if any(value.is_meta for value in self.bottleneck.buffers()):  # what a constructor computes and no file holds
            made = quantizers.build(self.config.bottleneck, "bottleneck")
            made.load_state_dict(self.bottleneck.state_dict(), assign=True)
            self.bottleneck = made
        self.bottleneck.float()
        return self.eval()
