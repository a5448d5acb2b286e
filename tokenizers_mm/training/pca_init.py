"""Where training of an autoencoder with `linear: true` begins: at the best linear code of its patches.

Shape letters: B batch, C channels, H and W pixels, N patches, D pixels of a patch, K channels of the code, O and P
outputs and inputs of a layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.models import Autoencoder

# Log-variance of a Gaussian bottleneck that starts from whitened latents: a noise of 5 % of their deviation.
_START_LOGVAR = -6.0


@torch.no_grad()
def pca_initialise(autoencoder: Autoencoder, image_BCHW: Tensor) -> None:
    """Start at the best linear code of these images: PCA into the bottleneck, least squares out of it.

    The optimum of a linear autoencoder is the PCA (Baldi and Hornik, 1989), yet gradient descent takes thousands of
    steps to get near it. Both nets start at zero and learn what the linear code leaves. Needs `linear: true`.
    """
    if not autoencoder.config.linear:
        raise ValueError("pca_initialise needs a tokenizer built with linear: true")
    bottleneck, f = autoencoder.bottleneck, autoencoder.downsampling
    patch_ND = F.pixel_unshuffle(image_BCHW, f).permute(0, 2, 3, 1).flatten(0, 2)
    mean_D = patch_ND.mean(0)
    variance_K, basis_DK = torch.linalg.eigh(torch.cov(patch_ND.T))
    count = min(bottleneck.dim, len(mean_D))
    code_KD = basis_DK.flip(1).T[:count]  # flipped: largest variance first
    deviation_K = variance_K.flip(0)[:count].clamp(min=1e-8).sqrt()
    code_KD = _spread(deviation_K) @ code_KD if bottleneck.codes else code_KD / deviation_K[:, None]
    for module in (autoencoder.quant_conv, getattr(autoencoder.decoder, "conv_out", None)):
        for parameter in module.parameters() if module is not None else ():
            parameter.zero_()
    weight_OP = torch.zeros(bottleneck.in_dim, len(mean_D))
    weight_OP[:count] = code_KD
    bias_O = -weight_OP @ mean_D
    if bottleneck.moments == 2:  # the second half is log-variances
        bias_O[bottleneck.dim :] = _START_LOGVAR
    _set_linear(autoencoder.linear_in, weight_OP, bias_O)
    code_NK = bottleneck(autoencoder.features(image_BCHW)[0]).z_BND.flatten(0, 1)
    design_NK = torch.cat([code_NK, torch.ones_like(code_NK[:, :1])], 1)
    solution_KD = torch.linalg.lstsq(design_NK, patch_ND).solution
    _set_linear(autoencoder.linear_out, solution_KD[:-1].T, solution_KD[-1])


def _spread(deviation_K: Tensor) -> Tensor:
    """Matrix [K, K] from principal components to channels of unit variance that share every component.

    A quantizer gives its channels about equal precision, while brightness needs far more of it than the next
    component does. Half-whitening keeps part of that difference, and an orthogonal rotation (the DCT) spreads it over
    all channels: twice the levels where one component had them.
    """
    place_K = torch.arange(len(deviation_K), device=deviation_K.device)
    dct_KK = torch.cos(math.pi * (place_K[:, None] + 0.5) * place_K / len(place_K))
    mixed_KK = dct_KK / torch.linalg.vector_norm(dct_KK, dim=0) / deviation_K.sqrt()
    spread_KK: Tensor = mixed_KK / torch.linalg.vector_norm(mixed_KK * deviation_K, dim=1, keepdim=True)
    return spread_KK


def _set_linear(layer: nn.Conv2d, weight_OP: Tensor, bias_O: Tensor) -> None:
    layer.load_state_dict({"weight": weight_OP[..., None, None], "bias": bias_O})
