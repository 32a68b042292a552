"""NF-ResNet and NF-RegNet against timm."""

import keras
import numpy as np
from test_nfnet import small

from keras_convnets.layers import ScaledWSConv2D
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm


def nf_regnet_test():
    return small(stem_type="3x3", bottle_ratio=2.25, reg=True)


class TestNFResNet(FamilyTests):
    family = "nf_resnet"
    reference = Timm(nf_regnet_test=nf_regnet_test)
    parity_variant = "nf_regnet_b1"

    def test_maps_keep_variance_1_at_the_start(self):
        """Section 4.2 of the first paper: with the activation's gain in the convolution."""
        x = images(4, 16, 16, 64)
        layer = ScaledWSConv2D(64, 3, padding="valid", gamma=1.7139588594436646)
        y = keras.ops.convert_to_numpy(layer(np.maximum(x, 0)))
        # Over the images, whose positives have a mean: that is no variance of the signal.
        assert 0.9 < y.var(axis=(0, 1, 2)).mean() < 1.1
        kernel = keras.ops.convert_to_numpy(layer.standardized_kernel())
        assert np.abs(kernel.sum((0, 1, 2))).max() < 1e-4
