"""ConvFormer and CAFormer against timm."""

import keras
import numpy as np

from keras_convnets.layers import StarReLU
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm


def caformer_test():
    from timm.models.metaformer import (
        Attention,
        LayerNorm2dNoBias,
        LayerNormNoBias,
        MetaFormer,
        SepConv,
    )

    mixers = [SepConv, SepConv, Attention, SepConv]
    norms = [LayerNormNoBias if mixer is Attention else LayerNorm2dNoBias for mixer in mixers]
    return MetaFormer(
        depths=(1, 1, 1, 1), dims=(8, 16, 64, 24), token_mixers=mixers, norm_layers=norms
    )


class TestMetaFormer(FamilyTests):
    family = "metaformer"
    reference = Timm(caformer_test=caformer_test)
    parity_variant = "caformer_s18"
    # A StarReLU squares: with a gain of 1 the maps grow from block to block.
    gain = 0.5
    # The converter moves the square of the head, and gives it the range of its argument.
    without_integers = {"caformer_test": ["Square"]}

    def test_star_relu_keeps_the_mean_and_the_variance_of_standard_normal_inputs(self):
        """With the scale and bias of equation 5, 1 / sqrt(1.25) and -0.5 / sqrt(1.25)."""
        layer = StarReLU()
        x = images(100_000)
        layer.build(x.shape)
        layer.set_weights([np.array([1.25**-0.5]), np.array([-0.5 * 1.25**-0.5])])
        y = keras.ops.convert_to_numpy(layer(x))
        assert abs(y.mean()) < 0.02
        assert abs(y.var() - 1) < 0.05
