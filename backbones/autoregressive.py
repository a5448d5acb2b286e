"""Images and captions, one symbol after the other: a causal transformer with a categorical head.

LlamaGen (arXiv 2406.06525) for the image half; the condition is a bidirectional prefix (Prefix LM, arXiv 1910.10683),
and one set of weights learns both directions, caption -> image and image -> caption (as Chameleon, arXiv 2405.09818).

Shape letters: B batch, N positions, S streams, L = N * S symbols of an image, T caption bytes, P prefix, E width,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbones import text
from backbones.codes import CodeEmbedding, CodeHead
from backbones.embed import ConditionEmbedding, GridEmbedding, check_condition, check_labels, condition_of
from backbones.guidance import check_scale, guide
from backbones.mask import prefix_mask
from backbones.sampling import check_draw, draw
from backbones.trunk import Trunk, TrunkConfig
from tokenizers_mm.api import Batch, Condition, Tokens, TokenSpec
from tokenizers_mm.blocks import KeyValueCache, zero_linear


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig:
    """Choices of an autoregressive generator.

    classes         0: the condition is a caption; otherwise the number of class labels (and no captions are written)
    text_weight     weight of the caption loss beside the image loss (0 skips image -> caption altogether)
    text_share      share of a batch's images, the first ones, whose captions are learned: a caption of bytes is
                    longer than its image, and takes more of a step's time than it needs
    drop_condition  share of training images without condition; what classifier-free guidance needs
    max_text        most bytes of a caption
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    classes: int = 0
    text_weight: float = 1.0
    text_share: float = 1.0
    drop_condition: float = 0.1
    max_text: int = 128

    def __post_init__(self) -> None:
        """Refuse weights, shares and counts that mean nothing."""
        check_condition(self.classes, self.drop_condition, self.max_text)
        if not self.text_weight >= 0:
            raise ValueError(f"text_weight={self.text_weight}: expected 0 (no captions) or more")
        if not 0 < self.text_share <= 1:
            raise ValueError(
                f"text_share={self.text_share}: expected a share in (0, 1]; text_weight=0 learns no captions"
            )

    @property
    def writes_captions(self) -> bool:
        """Whether image -> caption is learned."""
        return not self.classes and self.text_weight > 0


class Autoregressive(nn.Module):
    """Exact likelihood of an image's codes given a caption or a class, and of a caption given the codes.

    Streams are flattened position by position (stream s of a position sees streams 0..s-1 of it), so the
    factorisation is exact for any number of streams. `codebook_VD`, the vectors of all codes, makes learning faster.
    Raises `ValueError` for a continuous spec.
    """

    kind = "autoregressive"

    def __init__(self, config: AutoregressiveConfig, spec: TokenSpec, codebook_VD: Tensor | None = None) -> None:
        super().__init__()
        if not spec.discrete:
            raise ValueError("spec is continuous: an autoregressive generator needs codes; use backbones.Flow")
        self.config, self.spec, width = config, spec, config.width
        self.trunk = Trunk(TrunkConfig(width=width, depth=config.depth, heads=config.heads))
        self.codes = CodeEmbedding(spec.codes, width, codebook_VD)
        self.grid = GridEmbedding(spec, width)
        self.stream = nn.Embedding(spec.streams, width)
        self.condition = ConditionEmbedding(width, classes=config.classes, max_text=config.max_text)
        self.begin_image = nn.Parameter(torch.randn(width) * 0.3)
        dim = None if codebook_VD is None else codebook_VD.shape[1]
        self.code_heads = nn.ModuleList(CodeHead(size, width, dim) for size in spec.codes)
        if config.writes_captions:
            self.bytes = nn.Embedding(text.VOCABULARY, width)
            self.byte_head = zero_linear(width, text.VOCABULARY)
            nn.init.normal_(self.bytes.weight, std=0.5)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """`image`: nats per code; `text`: nats per caption byte times `text_weight`; both means over the batch.

        Every image weighs the same, so the mean over equal parts of a batch is the loss of the batch (with a
        `text_share` below 1 that is so of the image loss: the captions learned are those of the first of each part).
        """
        codes_BNS = self._checked(batch.tokens)
        config = self.config
        condition = condition_of(
            batch.captions,
            batch.labels_B,
            classes=config.classes,
            batch=len(batch),
            label_range=batch.label_range,
        )
        drop_B = torch.rand(len(batch), device=codes_BNS.device) < config.drop_condition if self.training else None
        losses = {"image": torch.stack(self.image_nats(codes_BNS, condition, drop_B)).mean()}
        if config.writes_captions:
            few = math.ceil(config.text_share * len(batch))
            ids_BT, mask_BT = text.encode(batch.captions[:few], config.max_text)
            nats_BT = self.text_nats(codes_BNS[:few], ids_BT.to(codes_BNS.device))
            mask_BT = mask_BT[:, 1:].to(codes_BNS.device)
            losses["text"] = config.text_weight * ((nats_BT * mask_BT).sum(1) / mask_BT.sum(1)).mean()
        return losses

    def image_nats(self, codes_BNS: Tensor, condition: Condition, drop_B: Tensor | None = None) -> list[Tensor]:
        """Negative log-likelihood [B, N] of every code, one tensor per stream."""
        logits = self.image_logits(codes_BNS, condition, drop_B)
        return [_nats(logits_BNV, codes_BNS[..., stream]) for stream, logits_BNV in enumerate(logits)]

    def text_nats(self, codes_BNS: Tensor, ids_BT: Tensor) -> Tensor:
        """Negative log-likelihood [B, T - 1] of every caption id after the first, given the image."""
        return _nats(self.text_logits(codes_BNS, ids_BT[:, :-1]), ids_BT[:, 1:])

    def image_logits(self, codes_BNS: Tensor, condition: Condition, drop_B: Tensor | None = None) -> list[Tensor]:
        """Teacher-forced logits [B, N, V], one tensor per stream."""
        prefix_BPE, valid_BP = self.condition(condition, drop_B)
        h_BLE = self._run(prefix_BPE, valid_BP, self._image_inputs(codes_BNS))
        h_BNSE = rearrange(h_BLE, "b (n s) e -> b n s e", s=self.spec.streams)
        return [self._code_logits(h_BNSE[:, :, stream], stream) for stream in range(self.spec.streams)]

    def text_logits(self, codes_BNS: Tensor, ids_BT: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V] of the byte after each of `ids_BT`."""
        prefix_BPE, valid_BP = self._image_prefix(codes_BNS)
        logits_BTV: Tensor = self.byte_head(self._run(prefix_BPE, valid_BP, self.bytes(ids_BT)))
        return logits_BTV

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        *,
        guidance: float = 1.0,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool = True,
    ) -> Tokens:
        """Draw one image's codes for every caption, or every label, in `condition`.

        guidance     1 is the model itself, more follows the condition more closely (needs `drop_condition` > 0)
        temperature  below 1 sharpens; 0 takes the most likely code
        top_k/top_p  keep the k most likely codes / the smallest set of probability p
        use_cache    False recomputes all earlier positions at every step (the reference the cache is tested against)
        """
        check_scale(guidance)
        check_draw(temperature, top_k, top_p)
        check_labels(condition, self.config.classes)
        prefix_BPE, valid_BP = self._guided_prefix(condition, guidance)
        generator = None if seed is None else torch.Generator(prefix_BPE.device).manual_seed(seed)
        batch, streams, places_LE = len(condition), self.spec.streams, self._places()
        advance = self._stepper(prefix_BPE, valid_BP, len(places_LE), use_cache)
        symbol_BE = self.begin_image.expand(batch, -1)
        codes: list[Tensor] = []
        for symbol, place_E in enumerate(places_LE):
            inputs_BE = (symbol_BE + place_E).repeat(len(prefix_BPE) // batch, 1)
            logits_BV = self._code_logits(advance(inputs_BE), symbol % streams).float()
            if guidance != 1:
                logits_BV = guide(logits_BV[:batch], logits_BV[batch:], guidance)
            codes.append(draw(logits_BV, temperature, top_k, top_p, generator))
            symbol_BE = self.codes(codes[-1], symbol % streams)
        return Tokens(codes_BNS=torch.stack(codes, 1).view(batch, -1, streams), grid=self.spec.grid)

    @torch.no_grad()
    def caption(self, tokens: Tokens, max_length: int | None = None) -> list[str]:
        """The most likely next byte again and again: one caption of at most `max_length` bytes per image."""
        if not self.config.writes_captions:
            raise ValueError("this generator was built without captions (classes > 0 or text_weight = 0)")
        limit = self.config.max_text if max_length is None else max_length
        if limit < 1:
            raise ValueError(f"max_length={max_length}: a caption needs at least 1 byte")
        prefix_BPE, valid_BP = self._image_prefix(self._checked(tokens))
        advance = self._stepper(prefix_BPE, valid_BP, limit, use_cache=True)
        ids = [torch.full((len(tokens),), text.BEGIN, device=prefix_BPE.device)]
        ended_B = torch.zeros(len(tokens), dtype=torch.bool, device=prefix_BPE.device)
        while len(ids) <= limit and not bool(ended_B.all()):
            ids.append(self.byte_head(advance(self.bytes(ids[-1]))).argmax(-1))
            ended_B |= ids[-1] == text.END
        return text.decode(torch.stack(ids, 1))

    def _checked(self, tokens: Tokens) -> Tensor:
        codes_BNS = tokens.check(self.spec).codes_BNS
        if codes_BNS is None or tokens.grid != self.spec.grid:
            raise ValueError(f"tokens have the grid {tokens.grid}: this generator was built for {self.spec.grid}")
        return codes_BNS

    def _places(self) -> Tensor:
        """Where every symbol stands [L, E]: its position in the grid and its stream."""
        place_LE: Tensor = (self.grid()[:, None] + self.stream.weight).flatten(0, 1)
        return place_LE

    def _image_inputs(self, codes_BNS: Tensor) -> Tensor:
        """Inputs [B, L, E]: slot i holds symbol i - 1 and the place of symbol i."""
        symbol_BLE = rearrange(self.codes(codes_BNS), "b n s e -> b (n s) e")[:, :-1]
        begin_B1E = self.begin_image.expand(len(symbol_BLE), 1, -1)
        return torch.cat([begin_B1E, symbol_BLE], 1) + self._places()

    def _code_logits(self, h: Tensor, stream: int) -> Tensor:
        codebook_VD = self.codes.codebook
        if codebook_VD is not None:
            codebook_VD = codebook_VD.narrow(0, sum(self.spec.codes[:stream]), self.spec.codes[stream])
        logits: Tensor = self.code_heads[stream](h, codebook_VD)
        return logits

    def _image_prefix(self, codes_BNS: Tensor) -> tuple[Tensor, Tensor]:
        prefix_BNE = self.codes(codes_BNS).sum(2) + self.grid()
        return prefix_BNE, torch.ones(prefix_BNE.shape[:2], dtype=torch.bool, device=prefix_BNE.device)

    def _guided_prefix(self, condition: Condition, guidance: float) -> tuple[Tensor, Tensor]:
        """The prefix, and below it the null condition where guidance compares the two."""
        prefix_BPE, valid_BP = self.condition(condition)
        if guidance == 1:
            return prefix_BPE, valid_BP
        null_BPE, null_BP = self.condition(condition, valid_BP.new_ones(len(valid_BP)))
        return torch.cat([prefix_BPE, null_BPE]), torch.cat([valid_BP, null_BP])

    def _run(self, prefix_BPE: Tensor, valid_BP: Tensor, target_BLE: Tensor) -> Tensor:
        """Hidden states [B, L, E] of the targets behind their prefix."""
        prefix, targets = prefix_BPE.shape[1], target_BLE.shape[1]
        mask_BLL = prefix_mask(valid_BP, targets)
        x_BLE = torch.cat([prefix_BPE, target_BLE], 1)
        h_BLE: Tensor = self.trunk(x_BLE, _positions(prefix, targets, x_BLE.device), mask_BLL)
        return h_BLE[:, prefix:]

    def _stepper(
        self, prefix_BPE: Tensor, valid_BP: Tensor, targets: int, use_cache: bool
    ) -> Callable[[Tensor], Tensor]:
        """A function that takes the next target's input [B, E] and returns its hidden state [B, E]."""
        inputs: list[Tensor] = []
        prefix, cache = prefix_BPE.shape[1], KeyValueCache()
        mask_BLL = prefix_mask(valid_BP, targets)
        positions = _positions(prefix, targets, prefix_BPE.device)

        def recompute(input_BE: Tensor) -> Tensor:
            inputs.append(input_BE)
            return self._run(prefix_BPE, valid_BP, torch.stack(inputs, 1))[:, -1]

        def advance(input_BE: Tensor) -> Tensor:
            inputs.append(input_BE)
            new = slice(prefix + len(inputs) - 1, prefix + len(inputs))
            h_B1E: Tensor = self.trunk(input_BE[:, None], positions[new], mask_BLL[:, new, : new.stop], cache=cache)
            return h_B1E[:, 0]

        if not use_cache:
            return recompute
        self.trunk(prefix_BPE, positions[:prefix], mask_BLL[:, :prefix, :prefix], cache=cache)
        return advance


def _positions(prefix: int, targets: int, device: torch.device) -> Tensor:
    """Rotary positions [P + L, 1]; each part counts from 0, so that padding of the prefix moves nothing."""
    return torch.cat([torch.arange(prefix, device=device), torch.arange(targets, device=device)])[:, None]


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="none").view(target.shape)
