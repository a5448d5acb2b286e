from tokenizers_mm.api import (
    Batch as Batch,
    Generator as Generator,
    Tokenizer as Tokenizer,
    Tokens as Tokens,
    TokenSpec as TokenSpec,
)
from tokenizers_mm.checkpoints.diffusers import from_diffusers as from_diffusers, to_diffusers as to_diffusers
from tokenizers_mm.checkpoints.loading import load as load
from tokenizers_mm.fast.convolutions import optimize as optimize
from tokenizers_mm.measure.evaluator import evaluate as evaluate
from tokenizers_mm.models.autoencoder import Autoencoder as Autoencoder, build_autoencoder as build_autoencoder
from tokenizers_mm.models.autoencoder_config import AutoencoderConfig as AutoencoderConfig
from tokenizers_mm.models.fused import Fused as Fused
from tokenizers_mm.models.tiled import Tiled as Tiled, tiling_error as tiling_error
from tokenizers_mm.saving.fingerprints import fingerprint as fingerprint
from tokenizers_mm.saving.folder import save as save
from tokenizers_mm.semantics import Semantics as Semantics, semantics_of as semantics_of
from tokenizers_mm.store.dataset import TokenDataset as TokenDataset
from tokenizers_mm.store.encode import encode_folder as encode_folder
from tokenizers_mm.store.verification import verify as verify
from tokenizers_mm.towers import Tower as Tower, TowerConfig as TowerConfig, build_tower as build_tower
