from tokenizers_mm.fast.convolutions import optimize as optimize
