from tokenizers_mm.losses.adversarial import adaptive_weight as adaptive_weight
from tokenizers_mm.losses.alignment import (
    Alignment as Alignment,
    AlignmentConfig as AlignmentConfig,
    projector as projector,
)
from tokenizers_mm.losses.discriminator_training import (
    AdversarialConfig as AdversarialConfig,
    Adversary as Adversary,
)
from tokenizers_mm.losses.distillation import cosine_distance as cosine_distance, toklip as toklip
from tokenizers_mm.losses.perceptual import Perceptual as Perceptual, feature_distance as feature_distance
from tokenizers_mm.losses.terms import Losses as Losses
