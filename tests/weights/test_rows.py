"""Every published row against the key list that timm gives for the row's number of classes.

Nothing here depends on the backend; it runs under PyTorch's, timm's own (see conftest.py).
"""

import numpy as np

from keras_convnets import create_model, list_weights
from keras_convnets.applications.base import without_allocation
from keras_convnets.registry import CLASSES
from keras_convnets.testing.reference import Timm
from keras_convnets.weights.state import misfits, slots


def test_every_published_row_fits_its_variant_by_name_and_shape():
    import torch

    reference = Timm()
    checked = {}
    for key, row in list_weights().items():
        variant = key.partition(".")[0]
        classes = CLASSES.get(row.labels)
        if classes == 1000:  # the families' own tests have compared these
            continue
        if (variant, classes) not in checked:
            with torch.device("meta"):
                module = reference.build(variant)
                module.reset_classifier(classes or 0)
            shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
            state = {name: np.broadcast_to(np.float32(0), s) for name, s in shapes.items()}
            with without_allocation():
                top = {"classes": classes} if classes else {"include_top": False}
                model = create_model(variant, weights=None, **top)
                checked[variant, classes] = misfits(variant, slots(model), state)
        assert checked[variant, classes] == [], key
