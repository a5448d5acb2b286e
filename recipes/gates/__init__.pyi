from recipes.gates.captions import measure_captions as measure_captions
from recipes.gates.figures import Example as Example, Figure as Figure, Findings as Findings, merge as merge
from recipes.gates.generators import (
    GENERATOR_TITLES as GENERATOR_TITLES,
    measure_copies_control as measure_copies_control,
    measure_samples as measure_samples,
)
from recipes.gates.photos import (
    CODECS as CODECS,
    PHOTO_TARGETS as PHOTO_TARGETS,
    PICTURES as PICTURES,
    TOKENIZERS as TOKENIZERS,
    measure_photos as measure_photos,
)
from recipes.gates.samples import GENERATORS as GENERATORS, SAMPLING as SAMPLING, draw_samples as draw_samples
from recipes.gates.shapes import (
    CONTROLS as CONTROLS,
    make_evaluator as make_evaluator,
    measure_stores as measure_stores,
    measure_tokenizer as measure_tokenizer,
)
