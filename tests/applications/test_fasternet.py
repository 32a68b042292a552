"""FasterNet against timm."""

import keras
import numpy as np

from keras_convnets.applications.fasternet import PartialConv2D
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm


def fasternet_test():
    from timm.models.fasternet import FasterNet

    return FasterNet(embed_dim=16, depths=(1, 2, 1), feature_dim=40)


class TestFasterNet(FamilyTests):
    family = "fasternet"
    reference = Timm(fasternet_test=fasternet_test)
    parity_variant = "fasternet_t0"

    def test_three_quarters_of_the_channels_stay(self):
        x = images(2, 8, 8, 12)
        y = keras.ops.convert_to_numpy(PartialConv2D(12)(x))
        np.testing.assert_array_equal(y[..., 3:], x[..., 3:])
        assert not np.allclose(y[..., :3], x[..., :3])
