"""What a tokenizer is trained to do: every term of the loss, and what balances them."""

from tokenizers_mm.objective.build import build_objective
from tokenizers_mm.objective.config import DistillationConfig, ObjectiveConfig
from tokenizers_mm.objective.objective import TokenizerObjective

__all__ = ["DistillationConfig", "ObjectiveConfig", "TokenizerObjective", "build_objective"]
