"""Published checkpoints: where they are, how they are read, and how they fill a model."""

from keras_convnets.weights.open import (
    as_published,
    fetch_checkpoint,
    open_checkpoint,
    open_source,
)
from keras_convnets.weights.state import (
    count_classes,
    fill,
    load_state_dict,
    published_names,
    save_state_dict,
    slots,
    state_dict,
    verify,
)

__all__ = [
    "as_published",
    "count_classes",
    "fetch_checkpoint",
    "fill",
    "load_state_dict",
    "open_checkpoint",
    "open_source",
    "published_names",
    "save_state_dict",
    "slots",
    "state_dict",
    "verify",
]
