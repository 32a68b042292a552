"""RepLKNet against numbers of the official code."""

from pathlib import Path

import keras
import numpy as np

from keras_convnets.applications.replknet import RepLKBlock
from keras_convnets.testing.golden import Golden, GoldenTests, torch_default


class TestRepLKNet(GoldenTests):
    family = "replknet"
    twins = ("replknet_xl_test",)
    reference = Golden(Path(__file__).parent / "data/replknet")
    initial = (("", torch_default),)
    gain = 0.8
    damped = r"/pw2/norm/gamma$"
    # TensorFlow adds the up to 961 products of a kernel one after the other: measured with float64
    # it is off by 8e-6 of the largest logit, the official code by 4e-6.
    tolerance = 2e-5

    def test_large_kernels_see_farther_than_stacked_small_ones(self):
        """Section 3: one 13x13 kernel changes a pixel six pixels away, which a 3x3 does not."""
        block = RepLKBlock(8, 8, 13)
        x = np.zeros((1, 15, 15, 8), "float32")
        far = x.copy()
        far[0, 1, 1] = 1
        here, there = (keras.ops.convert_to_numpy(block(v))[0, 7, 7] for v in (x, far))
        assert np.abs(here - there).max() > 0
