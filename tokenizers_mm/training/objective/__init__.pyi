from tokenizers_mm.training.objective.build import build_objective as build_objective
from tokenizers_mm.training.objective.config import (
    DistillationConfig as DistillationConfig,
    ObjectiveConfig as ObjectiveConfig,
)
from tokenizers_mm.training.objective.freeze import Part as Part
from tokenizers_mm.training.objective.objective import TokenizerObjective as TokenizerObjective
