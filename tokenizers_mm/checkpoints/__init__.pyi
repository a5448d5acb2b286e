from tokenizers_mm.checkpoints.diffusers import from_diffusers as from_diffusers, to_diffusers as to_diffusers
from tokenizers_mm.checkpoints.families import (
    Family as Family,
    check_family as check_family,
    known_families as known_families,
)
from tokenizers_mm.checkpoints.loading import load as load
from tokenizers_mm.checkpoints.source import check_source as check_source
from tokenizers_mm.weights import CheckpointError as CheckpointError
