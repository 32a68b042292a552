"""RepNeXt against numbers of the official code."""

from pathlib import Path

import keras
import numpy as np

from keras_convnets.applications.repnext import MergingDepthwiseConv2D
from keras_convnets.testing.conformance import LEAST_COSINE
from keras_convnets.testing.golden import Golden, GoldenTests, torch_default


class TestRepNeXt(GoldenTests):
    family = "repnext"
    reference = Golden(Path(__file__).parent / "data/repnext")
    initial = (("linear", 0.02), ("", torch_default))
    gain = 0.6  # as in the reference; with 1 the quantized file is 3 steps off at one map
    # Of kernels this small, 8 bits leave a little less.
    least_cosine = LEAST_COSINE | {"dynamic": 0.99}
    keeps_batchnorm = "downsample_norm"  # after a concatenation, and added again further on
    no_gradient = r"mixer/.*bias"  # which the next BatchNorm takes away again

    def test_branches_of_stride_2_merge_as_convolutions_do(self):
        """A 1x3 and then a 3x1 kernel are their product, four distant taps a 3x3 kernel's corners,
        on odd sides and even ones."""
        for size in ((9, 9), (12, 7)):
            layer = MergingDepthwiseConv2D(3, ((2, 2),), serial=(3,), strides=2)
            x = np.random.default_rng(0).normal(size=(1, *size, 1)).astype("float32")
            have = keras.ops.convert_to_numpy(layer(x))[0, ..., 0]
            kernels = [
                keras.ops.convert_to_numpy(v)[..., 0, 0] for v in layer.weights if v.ndim > 1
            ]
            kernel, corners, wide, high = kernels
            kernel = kernel + high @ wide
            kernel[::2, ::2] += corners
            padded = np.pad(x[0, ..., 0], 1)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::2, ::2]
            np.testing.assert_allclose(have, (windows * kernel).sum((2, 3)), atol=1e-5)
