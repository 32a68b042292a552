"""InceptionNeXt against timm."""

import keras
import numpy as np

from keras_convnets.applications.inception_next import InceptionDepthwiseConv2D
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def inception_next_test():
    from timm.models.inception_next import MetaNeXt

    return MetaNeXt(depths=(1, 1, 2, 1), dims=(16, 16, 24, 24))


class TestInceptionNeXt(FamilyTests):
    family = "inception_next"
    reference = Timm(inception_next_test=inception_next_test)
    parity_variant = "inception_next_atto"

    def test_each_part_of_the_channels_sees_its_own_window(self):
        """Equations 4 to 8: an impulse spreads to nothing, 3x3, 1x11 and 11x1 pixels."""
        x = np.zeros((1, 15, 15, 16), "float32")
        x[0, 7, 7] = 1
        y = keras.ops.convert_to_numpy(InceptionDepthwiseConv2D(16)(x))[0] != 0
        assert y.sum((0, 1)).tolist() == [1] * 10 + [9] * 2 + [11] * 4
        assert y[7, :, 12:14].sum() == y[:, 7, 14:].sum() == 2 * 11
