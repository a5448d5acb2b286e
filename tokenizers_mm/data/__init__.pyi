from tokenizers_mm.data.annotated import (
    CaptionedFolder as CaptionedFolder,
    LabelledImages as LabelledImages,
    labelled_folder as labelled_folder,
)
from tokenizers_mm.data.annotation_formats import CAPTIONS as CAPTIONS, CLASSES as CLASSES
from tokenizers_mm.data.annotations import (
    PartialAnnotations as PartialAnnotations,
    read_annotations as read_annotations,
    read_partial_annotations as read_partial_annotations,
)
from tokenizers_mm.data.crops import RandomCrops as RandomCrops
from tokenizers_mm.data.folder import ImageFolder as ImageFolder
from tokenizers_mm.data.images import (
    SUFFIXES as SUFFIXES,
    ImageError as ImageError,
    Pixels as Pixels,
    Preprocess as Preprocess,
    centre_crop as centre_crop,
    check_folder as check_folder,
    decode as decode,
    find_images as find_images,
    pad_to_multiple as pad_to_multiple,
    read_image as read_image,
    resize_shorter as resize_shorter,
    resized_shape as resized_shape,
    to_tensor as to_tensor,
    to_uint8 as to_uint8,
    unpad as unpad,
)
from tokenizers_mm.data.labelled import Labelled as Labelled, MissingDataError as MissingDataError
from tokenizers_mm.data.loader import DataPosition as DataPosition, micro_batches as micro_batches
from tokenizers_mm.data.sources import (
    Draw as Draw,
    Examples as Examples,
    Fetched as Fetched,
    ImageArrays as ImageArrays,
    Source as Source,
    account as account,
    batch_of as batch_of,
    draws_for as draws_for,
    fetch as fetch,
    unreadable_of as unreadable_of,
)
from tokenizers_mm.data.unreadable import (
    ALLOWED_SHARE as ALLOWED_SHARE,
    Unreadable as Unreadable,
    check_share as check_share,
    too_many as too_many,
)
