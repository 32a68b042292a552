"""TensorFlow with oneDNN, which it turns on by itself on processors with instructions for neural
networks, and on others does not: both ways the outputs are the same."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_convnets import create_model
from keras_convnets.graph import fuse
from keras_convnets.testing.conformance import assert_close, fill_seeded, images

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="oneDNN is a part of TensorFlow"
)
# Padded, strided and depthwise convolutions, with normalisation after them and without.
VARIANTS = ("mobilenetv2_test", "efficientnet_test")
SHAPE = (40, 48, 3)
CHILD = """
import sys
import numpy as np
from tests.test_onednn import both_forms
np.savez(sys.argv[1], **both_forms())
"""


def both_forms():
    """Outputs of each model, compiled into a graph, as it is and fused."""
    found = {}
    for name in VARIANTS:
        model = create_model(name, weights=None, input_shape=SHAPE)
        fill_seeded(model)
        found[name] = model.predict_on_batch(images(2, *SHAPE))
        found[f"{name}, fused"] = fuse(model).predict_on_batch(images(2, *SHAPE))
    return found


def test_outputs_with_and_without(tmp_path):
    from tensorflow.python.util import _pywrap_util_port

    path = tmp_path / "outputs.npz"
    switch = {"TF_ENABLE_ONEDNN_OPTS": str(int(not _pywrap_util_port.IsMklEnabled()))}
    child = [sys.executable, "-c", CHILD, str(path)]
    ended = subprocess.run(child, env={**os.environ, **switch}, capture_output=True, text=True)
    assert ended.returncode == 0, f"{switch}: {ended.stderr[-2000:]}"
    outputs = np.load(path)
    for name, here in both_forms().items():
        assert_close(outputs[name], here, 1e-5, f"{name}, {switch}")
