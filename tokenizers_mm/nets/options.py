"""What is asked of the options of nets before anything is built: do encoder and decoder fit, how do positions lie.

Every kind of net has a frozen dataclass of options; the answers that most of them give stand here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tokenizers_mm.api import Layout


class DecoderOptions(ABC):
    """Options of a decoder.

    generative  whether it paints: it learns from `velocity_loss`, and draws an image where others compute one
    """

    generative: ClassVar[bool] = False

    @property
    @abstractmethod
    def kind(self) -> str:
        """Its name in configurations."""

    @property
    @abstractmethod
    def image_channels(self) -> int:
        """Channels of the images."""

    @abstractmethod
    def check_takes(self, net: NetOptions) -> None:
        """Raise `ValueError` unless this decoder takes the features that the encoder of `net` gives."""


class NetOptions(DecoderOptions):
    """Options of an encoder and its decoder, whose features are those it takes.

    frozen  whether the encoder is pretrained and stays as it is: the channels of its features are its own
    """

    frozen: ClassVar[bool] = False

    @property
    @abstractmethod
    def downsampling(self) -> int:
        """Pixels per position along each side; without positions along them, what sides are multiples of."""

    @property
    def tokens(self) -> int | None:
        """How many positions without a place the features have; None: those of a map."""
        return None

    @property
    def layout(self) -> Layout:
        """How the positions lie, as a `TokenSpec` says it."""
        return "raster"

    def check_takes(self, net: NetOptions) -> None:
        """Raise `ValueError` unless both have the same positions."""
        if self.tokens != net.tokens:
            raise ValueError(
                f"decoder_net {self.kind}: takes {_named(self.tokens)}, net {net.kind} gives {_named(net.tokens)}; "
                "use a decoder_net that takes them, flow takes either"
            )
        if self.downsampling != net.downsampling:
            raise ValueError(
                f"decoder_net has a downsampling of {self.downsampling}, net one of {net.downsampling}: must be equal"
            )


def _named(tokens: int | None) -> str:
    return "a map" if tokens is None else f"{tokens} tokens without a place"
