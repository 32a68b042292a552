"""FFNet against numbers of the official code."""

from pathlib import Path

import keras
import numpy as np

from keras_convnets.applications.ffnet import FFNifiedAttention
from keras_convnets.graph import reparameterize
from keras_convnets.testing.conformance import assert_close, images, run
from keras_convnets.testing.golden import Golden, GoldenTests


class TestFFNet(GoldenTests):
    family = "ffnet"
    twins = ("ffnet_k3_test",)
    reference = Golden(Path(__file__).parent / "data/ffnet")
    initial = (("layer_scale", None), ("", 0.02))

    def test_token_mixer_is_a_feed_forward_network_of_neighbourhoods(self):
        """Per channel, and with neighbourhoods as wide as the map: V gelu(K q), both matrices those
        of the merged 7x7 kernels."""
        inputs = keras.Input((4, 4, 1))
        model = keras.Model(inputs, FFNifiedAttention(1)(inputs))
        random = np.random.default_rng(0)
        for variable in model.variables:
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        x = images(1, 4, 4, 1)
        convs = [layer for layer in reparameterize(model).layers if layer.weights][-2:]
        y = run(keras.Model(inputs, model.layers[-1].fc(inputs)), x).ravel()
        at = np.arange(4)[:, None] - np.arange(4)  # of a pixel in another's neighbourhood
        for i, conv in enumerate(convs):
            kernel, bias = (keras.ops.convert_to_numpy(v) for v in conv.weights)
            rows, columns = (3 - np.kron(at, np.ones((4, 4)))), (3 - np.tile(at, (4, 4)))
            matrix = kernel[rows.astype(int), columns.astype(int), 0, 0]
            y = matrix @ y + bias
            y = keras.ops.convert_to_numpy(keras.ops.gelu(y, approximate=False)) if i == 0 else y
        assert_close(run(model, x).ravel(), x.ravel() + y, 1e-5, "mixer")
