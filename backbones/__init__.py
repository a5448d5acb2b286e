"""Generators: tokens -> likelihood or velocity -> tokens. They know a `TokenSpec`, never a tokenizer."""

from backbones.autoregressive import Autoregressive, AutoregressiveConfig
from backbones.checkpoint import KINDS, build, load, save
from backbones.flow import Flow, FlowConfig

__all__ = ["KINDS", "Autoregressive", "AutoregressiveConfig", "Flow", "FlowConfig", "build", "load", "save"]
