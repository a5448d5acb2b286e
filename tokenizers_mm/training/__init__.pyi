from tokenizers_mm.training.config import TrainConfig as TrainConfig
from tokenizers_mm.training.ema import EMA as EMA
from tokenizers_mm.training.folder import RunFolder as RunFolder
from tokenizers_mm.training.loop import train as train
from tokenizers_mm.training.pca_init import pca_initialise as pca_initialise
from tokenizers_mm.training.protocols import Mean as Mean, Objective as Objective, Player as Player
from tokenizers_mm.training.run import Picture as Picture
from tokenizers_mm.training.step import DivergenceError as DivergenceError
