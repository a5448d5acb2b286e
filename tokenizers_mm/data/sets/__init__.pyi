from tokenizers_mm.data.sets.emoji import EmojiSplit as EmojiSplit
from tokenizers_mm.data.sets.fashion import FashionSplit as FashionSplit, fashion_mnist as fashion_mnist
from tokenizers_mm.data.sets.photos import heldout_photos as heldout_photos, training_photos as training_photos
from tokenizers_mm.data.sets.shapes import ATTRIBUTES as ATTRIBUTES, Shapes as Shapes, write_folder as write_folder
from tokenizers_mm.data.sets.words import ALPHABET as ALPHABET, WordSplit as WordSplit
