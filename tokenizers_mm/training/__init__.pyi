from tokenizers_mm.training.ema import EMA as EMA
from tokenizers_mm.training.folder import RunFolder as RunFolder
from tokenizers_mm.training.loop import Picture as Picture, TrainConfig as TrainConfig, train as train
from tokenizers_mm.training.pca_init import start_linear as start_linear
