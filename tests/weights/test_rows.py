"""Every row of timm's families against the key list that it gives for the row's number of classes.

Nothing here depends on the backend; it runs under PyTorch's, timm's own (see conftest.py).
"""

import numpy as np
import torch

from keras_convnets import list_weights
from keras_convnets.registry import CLASSES
from keras_convnets.testing.reference import Timm, import_timm
from keras_convnets.weights import verify


def test_every_row_of_timm_fits_its_variant_by_name_and_shape():
    reference = Timm()
    # The families' own tests have compared those with 1,000 classes.
    rows = {
        (key.partition(".")[0], CLASSES.get(row.labels, 0)) for key, row in list_weights().items()
    }
    for variant, classes in sorted(rows):
        if classes != 1000 and import_timm().is_model(variant):
            with torch.device("meta"):
                module = reference.build(variant)
                module.reset_classifier(classes)
            shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
            verify(variant, {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()})
