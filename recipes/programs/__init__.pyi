from recipes.programs.arguments import (
    Device as Device,
    MaxUnreadable as MaxUnreadable,
    chosen_device as chosen_device,
    tell as tell,
    warn as warn,
)
from recipes.programs.checks import check_measuring as check_measuring
from recipes.programs.convert import convert_tokenizer as convert_tokenizer, families_text as families_text
from recipes.programs.datasets import write_dataset as write_dataset
from recipes.programs.evaluate import Extras as Extras, evaluate_images as evaluate_images, preparation as preparation
from recipes.programs.image_sets import LeftOut as LeftOut, image_set as image_set
from recipes.programs.run_folder import trained_precision as trained_precision
from recipes.programs.store_commands import encode as encode, verify as verify
from recipes.programs.tokenizer_source import TokenizerSource as TokenizerSource, open_tokenizer as open_tokenizer
from recipes.programs.train import (
    train_generator as train_generator,
    train_tokenizer as train_tokenizer,
    with_features as with_features,
)
