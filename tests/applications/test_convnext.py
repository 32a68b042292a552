"""ConvNeXt V1 and V2 against timm."""

import keras
import numpy as np

from keras_convnets.layers import GlobalResponseNorm
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm


def small(**version):
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), **version)


class TestConvNeXt(FamilyTests):
    family = "convnext"
    reference = Timm(
        convnext_test=small,
        convnextv2_test=lambda: small(use_grn=True, ls_init_value=None),
    )
    parity_variant = "convnext_tiny"

    def test_global_response_norm_is_algorithm_1(self):
        x = images(2, 5, 7, 4)
        layer = GlobalResponseNorm()
        layer.build(x.shape)
        gamma, beta = images(4), images(4) + 1
        layer.gamma.assign(gamma)
        layer.beta.assign(beta)
        norm = np.sqrt((x**2).sum((1, 2), keepdims=True))
        expected = x + gamma * x * norm / (norm.mean(-1, keepdims=True) + 1e-6) + beta
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(layer(x)), expected, rtol=1e-5, atol=1e-5
        )
