"""What files with weights are called, and where they stand in the folders of other libraries: names only, no torch."""

from __future__ import annotations

__all__ = ["INNER_FOLDERS", "PICKLE_NAMES", "SAFETENSORS_NAMES", "WEIGHT_SUFFIXES"]

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# How diffusers and transformers call a folder's one model, best first.
SAFETENSORS_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
PICKLE_NAMES = ("diffusion_pytorch_model.bin", "pytorch_model.bin")
# Where diffusers' pipelines keep their tokenizer.
INNER_FOLDERS = ("vae", "vqvae", "movq")
