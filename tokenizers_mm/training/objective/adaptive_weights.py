"""Adaptive weights: a term's gradient at some layer is kept as long as that of the reconstruction.

Taming Transformers (https://arxiv.org/abs/2012.09841) for the adversarial term at the decoder's last layer, VA-VAE
(https://arxiv.org/abs/2501.01423) for alignment at the encoder's. Published trainers take the ratio of one micro-batch
of one process and use it at once. Gradients are linear, so here they are summed over all micro-batches and processes of
a step, and the ratio is used from the next step on: accumulating and spreading a batch change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizers_mm.losses import adaptive_weight
from tokenizers_mm.training import Mean


class Balance(nn.Module):
    """The running weight of one term; zero until the first ratio is known.

    maximum  the weight never exceeds it, so that it stays finite where the term's gradient vanishes
    """

    weight: Tensor

    def __init__(self, maximum: float) -> None:
        super().__init__()
        self.maximum = maximum
        self.register_buffer("weight", torch.zeros(()))
        self._sums: list[Tensor] = []

    def add(self, reference: Tensor, gradient: Tensor) -> None:
        """Gradients of one micro-batch at the shared layer: of the reconstruction, and of the term."""
        both = [reference.detach().float(), gradient.detach().float()]
        self._sums = both if not self._sums else [have + new for have, new in zip(self._sums, both, strict=True)]

    def update(self, mean: Mean) -> None:
        """Set the weight from everything added since the last call; unchanged where nothing was.

        mean  averages a tensor over processes
        """
        if not self._sums:
            return
        reference, gradient = mean(torch.stack(self._sums)).unbind()
        self.weight.copy_(adaptive_weight(reference, gradient, self.maximum))
        self._sums = []
