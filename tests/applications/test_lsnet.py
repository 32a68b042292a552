"""LSNet against numbers of the official code."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_convnets.applications.lsnet import DistanceBias, LSConv2D
from keras_convnets.testing.conformance import LEAST_COSINE, assert_close, images, run
from keras_convnets.testing.golden import Golden, GoldenTests, torch_default


class TestLSNet(GoldenTests):
    family = "lsnet"
    macs_tolerance = 0.01  # the official count leaves out the products of the aggregation
    reference = Golden(Path(__file__).parent / "data/lsnet")
    initial = (("attention_biases", None), (r"head.*\.l\.", 0.02), ("", torch_default))
    size = 128  # whose last map has pixels to attend to
    # Kernels that 4-bit weights predict, applied to maps of 4-bit weights: both errors multiply.
    least_cosine = {**LEAST_COSINE, "int4": 0.35}
    without_integers = {
        "lsnet_test": ["AggregateNeighborhood", "DistanceBias", "GroupNormalization"]
    }
    keeps_batchnorm = r"ls_conv_norm"  # after an aggregation, which has no kernel of its own

    def test_kernels_are_those_of_each_pixel_and_every_eighth_channel(self):
        """Equations 5 to 7 in NumPy: the 3x3 window of channel c, times kernel c mod (C / 8)."""
        inputs = keras.Input((5, 6, 16))
        block = LSConv2D(16)
        model = keras.Model(inputs, block(inputs))
        kernels = block.kernels(block.mix(block.depthwise(block.reduce(inputs))))
        x = images(1, 5, 6, 16)
        kernels = run(keras.Model(inputs, kernels), x)[0].reshape(30, 2, 9)
        kernels = (kernels - kernels.mean((0, 2), keepdims=True)) / np.sqrt(
            kernels.var((0, 2), keepdims=True) + 1e-5
        )
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x[0], ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1)
        )
        windows = windows.reshape(30, 16, 9)
        want = np.stack([(windows[:, c] * kernels[:, c % 2]).sum(-1) for c in range(16)], -1)
        want = x[0] + want.reshape(5, 6, 16) / np.sqrt(1 + 1e-5)
        assert_close(run(model, x)[0], want, 1e-5, "LSConv2D")

    @pytest.mark.parametrize("size", [(4, 4), (3, 3), (2, 7), (12, 6)])
    def test_biases_of_other_sizes_are_those_of_the_resized_table(self, size):
        import torch

        layer = DistanceBias(2, 4)
        layer.build((None, None, None, 1))
        table = images(2, 16)
        layer.table.assign(table)
        biases = keras.ops.convert_to_numpy(layer(np.zeros((1, *size, 1), "float32")))
        biases = biases.reshape(2, *size, *size)
        resized = table.reshape(2, 4, 4)
        if size != (4, 4):
            resized = torch.nn.functional.interpolate(
                torch.tensor(resized)[None], size, mode="bicubic"
            )[0]
            resized = resized.numpy()
        for (y1, x1), (y2, x2) in np.random.default_rng(0).integers(0, size, (20, 2, 2)):
            want = resized[:, abs(y1 - y2), abs(x1 - x2)]
            np.testing.assert_allclose(biases[:, y1, x1, y2, x2], want, atol=1e-5)
