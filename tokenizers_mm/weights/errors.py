"""The one error of reading and writing tokenizers."""


class CheckpointError(ValueError):
    """A file, folder or hub repository that holds no usable tokenizer; says which, why and what to do."""
