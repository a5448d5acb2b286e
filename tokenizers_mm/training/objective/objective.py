"""The training pass of a tokenizer: pixels to tokens to pixels, and every term between.

The graph is cut at the reconstruction and at the latents (see `cut`): the networks that judge them are differentiated
once, one after the other.

Shape letters: B batch, C image channels, H and W pixels, N positions, D channels of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.data import Examples
from tokenizers_mm.geometry import FeatureGrid
from tokenizers_mm.losses import Adversary, Alignment, Losses, Perceptual, toklip
from tokenizers_mm.losses.contrastive import contrastive
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.training import Mean, Objective
from tokenizers_mm.training.objective.adaptive_weights import Balance
from tokenizers_mm.training.objective.config import ObjectiveConfig
from tokenizers_mm.training.objective.cut import Cut, Scale, cut


class TokenizerObjective(nn.Module, Objective):
    """Maps a batch (images, or `Examples`) to the weighted terms; those of weight 0 are absent.

    Teachers, perceptual network and adversary are neither trained nor saved with this module. `teachers` maps
    "alignment" and "distillation" to modules image -> `Semantics`; features that come with the batch are used instead.
    Modules in `frozen` stay in eval mode: codebooks and running statistics do not move either (see `freeze`).
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        config: ObjectiveConfig,
        *,
        perceptual: Perceptual | None = None,
        adversary: Adversary | None = None,
        alignment: Alignment | None = None,
        teachers: Mapping[str, nn.Module] | None = None,
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        if config.perceptual and perceptual is None:
            raise ValueError(f"perceptual={config.perceptual}: a perceptual network is needed")
        if config.alignment is not None and alignment is None:
            raise ValueError("alignment: the projection to the teacher's features is needed; see build_objective")
        _check_fits(autoencoder, config)
        self.autoencoder, self.config, self.perceptual, self.alignment = autoencoder, config, perceptual, alignment
        self.teachers = nn.ModuleDict(dict(teachers or {}))
        # In tuples, so that they are no parts of this module: the training loop has the adversary's parameters as well.
        self._adversary, self._frozen, self.step = (adversary,), tuple(frozen), 0
        self.balances = nn.ModuleDict()
        for name in ("adversarial", "alignment"):
            options = getattr(config, name)
            if options is not None and options.adaptive:
                self.balances[name] = Balance(options.max_weight)

    @property
    def adversary(self) -> Adversary | None:
        """The discriminator, which the training loop trains beside this module."""
        return self._adversary[0]

    def forward(self, batch: Tensor | Examples) -> Losses:
        """One pass; gradients of the networks behind the cuts are computed here, the tokenizer's by backward."""
        examples, c = Examples.of(batch), self.config
        quantized, vectors = self.autoencoder.quantized(examples.image_BCHW)
        (z_BND, grid), scale = vectors, Scale()
        terms, pair = dict[str, Tensor](), None
        if self.alignment is not None:
            terms["alignment"], to_decoder_BND = self._align(z_BND, grid, examples, scale)
            vectors = vectors._replace(z_BND=to_decoder_BND)
        if c.pixels:
            image_BCHW = examples.image_BCHW.float()
            recon_BCHW = self.autoencoder.pixels(vectors).float()
            terms |= self._compare(recon_BCHW, image_BCHW, scale)
            if self.training and self.adversary is not None and self.adversary.trains(self.step):
                pair = image_BCHW, recon_BCHW.detach()
        if c.velocity:
            terms["velocity"] = c.velocity * self.autoencoder.velocity_loss(vectors, examples.image_BCHW)
        if c.text or c.distillation:
            terms |= self._teach_head(z_BND, grid, examples)
        if c.bottleneck:
            terms["commitment" if self.autoencoder.spec.discrete else "kl"] = c.bottleneck * quantized.loss
        weights = {f"{name}_weight": balance.weight.clone() for name, balance in self._balances()}
        return Losses(terms, quantized.stats | weights, pair)

    def begin_step(self, step: int) -> None:
        """Take the number of the step, by which the adversarial term and the pairs for the discriminator set in."""
        self.step = step

    def end_step(self, mean: Mean) -> None:
        """After every step of the optimiser: adaptive weights follow the gradients of all its micro-batches."""
        for _, balance in self._balances():
            balance.update(mean)

    def train(self, mode: bool = True) -> TokenizerObjective:
        """As every module's, but what is frozen stays in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _compare(self, recon_BCHW: Tensor, image_BCHW: Tensor, scale: Scale) -> dict[str, Tensor]:
        """Pixel terms and the adversary's."""
        cuts = {
            name: cut(recon_BCHW, lambda x, loss=loss: loss(x, image_BCHW), scale=scale)  # type: ignore[misc]
            for name, loss in self._pixel_losses().items()
        }
        terms = {name: part.term for name, part in cuts.items()}
        if self.adversary is not None and self.adversary.active(self.step):
            part = cut(recon_BCHW, self.adversary.generator_loss)
            terms["adversarial"] = self._weight("adversarial") * part.term
            if "adversarial" in self.balances:
                reference_BCHW = torch.stack([other.gradient for other in cuts.values()]).sum(0)
                self._measure("adversarial", recon_BCHW, self.autoencoder.last_layer, reference_BCHW, part.gradient)
        return terms

    def _pixel_losses(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        c, losses = self.config, dict[str, Callable[[Tensor, Tensor], Tensor]]()
        if c.l1:
            losses["l1"] = lambda x, y: c.l1 * F.l1_loss(x, y)
        if c.l2:
            losses["l2"] = lambda x, y: c.l2 * F.mse_loss(x, y)
        perceptual = self.perceptual
        if c.perceptual and perceptual is not None:
            losses["perceptual"] = lambda x, y: c.perceptual * perceptual(x, y).mean()
        return losses

    def _align(self, z_BND: Tensor, grid: FeatureGrid, examples: Examples, scale: Scale) -> tuple[Tensor, Tensor]:
        """The alignment term, and the latents for the decoder, whose gradient is measured there if weights adapt."""
        alignment = self.alignment
        assert alignment is not None
        target = self._target("alignment", examples)
        part: Cut = cut(z_BND, lambda x: alignment(x, grid, target), trained=alignment)
        to_decoder_BND = z_BND
        if "alignment" in self.balances and z_BND.requires_grad and self.training:
            to_decoder_BND = z_BND.view_as(z_BND)

            def measure(gradient_BND: Tensor) -> None:
                layer = self.autoencoder.last_encoder_layer
                self._measure("alignment", z_BND, layer, gradient_BND / scale.value, part.gradient)

            to_decoder_BND.register_hook(measure)  # type: ignore[no-untyped-call]
        return self._weight("alignment") * part.term, to_decoder_BND

    def _teach_head(self, z_BND: Tensor, grid: FeatureGrid, examples: Examples) -> dict[str, Tensor]:
        """Image-text contrast, and distillation, on what the semantic head reads off the (quantised) vectors."""
        head, c, terms = self.autoencoder.semantic, self.config, dict[str, Tensor]()
        assert head is not None
        semantics: Semantics = head(z_BND, grid)
        if c.text:
            if not examples.captions:
                raise ValueError(f"text={c.text}: the images have no captions; take data that has, or set text to 0")
            terms["text"] = c.text * contrastive(
                head.config.contrast,
                semantics.pooled_BD,
                head.text_features(examples.captions),
                scale=head.scale,
                bias=head.logit_bias,
                captions=examples.captions,
            )
        if c.distillation:
            weights = {"pooled": c.distillation.pooled, "patch": c.distillation.patch}
            terms["distillation"] = toklip(semantics, self._target("distillation", examples), **weights)
        return terms

    def _target(self, name: str, examples: Examples) -> Semantics:
        if examples.features is not None:
            return examples.features
        with torch.no_grad():
            features: Semantics = self.teachers[name](examples.image_BCHW)
        return features

    def _weight(self, name: str) -> Tensor | float:
        weight: float = getattr(self.config, name).weight
        return weight * dict(self._balances())[name].weight if name in self.balances else weight

    def _balances(self) -> list[tuple[str, Balance]]:
        return [(name, balance) for name, balance in self.balances.items() if isinstance(balance, Balance)]

    def _measure(self, name: str, x: Tensor, layer: Tensor, reference: Tensor, gradient: Tensor) -> None:
        """Bring two gradients at x to the weight of a layer before it."""
        if not (self.training and x.requires_grad and layer.requires_grad):
            return
        at_layer = [torch.autograd.grad(x, layer, g.to(x.dtype), retain_graph=True)[0] for g in (reference, gradient)]
        dict(self._balances())[name].add(*at_layer)


def _check_fits(autoencoder: Autoencoder, config: ObjectiveConfig) -> None:
    """`ValueError` where the tokenizer has not what a term reads."""
    if autoencoder.generative != bool(config.velocity):
        what = "a flow decoder learns from velocity alone" if autoencoder.generative else "only flow decoders have it"
        raise ValueError(f"velocity={config.velocity}: {what}")
    if (config.text or config.distillation) and autoencoder.semantic is None:
        raise ValueError(f"text={config.text}, distillation: the model has no semantic head; set model.semantic")
    if config.text and autoencoder.semantic is not None and autoencoder.semantic.text is None:
        raise ValueError(f"text={config.text}: the semantic head has no text encoder; set model.semantic.text")
