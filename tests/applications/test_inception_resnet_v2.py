"""Inception-ResNet-v2 against timm."""

import importlib
from unittest import mock

import keras

from keras_convnets.applications.inception_resnet_v2 import BLOCK_35, InceptionResidual
from keras_convnets.testing.conformance import FamilyTests, assert_close, images
from keras_convnets.testing.reference import Timm


def inception_resnet_v2_test():
    from torch.nn import Conv2d, Linear

    inception_resnet_v2 = importlib.import_module("timm.models.inception_resnet_v2")
    conv_norm_act = inception_resnet_v2.ConvNormAct

    def narrow(in_channels, out_channels, **conv):
        in_channels = in_channels if in_channels == 3 else in_channels // 32
        return conv_norm_act(in_channels, out_channels // 32, **conv)

    with mock.patch.object(inception_resnet_v2, "ConvNormAct", narrow):
        module = inception_resnet_v2.InceptionResnetV2()
    module.repeat, module.repeat_1 = module.repeat[:1], module.repeat_1[:2]
    module.repeat_2 = module.repeat_2[:2]
    for block in (*module.repeat, *module.repeat_1, *module.repeat_2, module.block8):
        block.conv2d = Conv2d(block.conv2d.in_channels // 32, block.conv2d.out_channels // 32, 1)
    module.classif = Linear(48, 1000)
    return module


class TestInceptionResNetV2(FamilyTests):
    family = "inception_resnet_v2"
    reference = Timm(inception_resnet_v2_test=inception_resnet_v2_test)
    parity_variant = "inception_resnet_v2"
    size = 96
    unpadded = 40

    def test_the_correction_is_scaled_down(self):
        """Section 3.3, without the activation: linear in the scale."""
        x = images(1, 8, 8, 12)
        blocks = [InceptionResidual(12, s, BLOCK_35, 1 / 16, None) for s in (1.0, 0.17)]
        for block in blocks:
            block.build(x.shape)
        blocks[1].set_weights(blocks[0].get_weights())
        whole, scaled = (keras.ops.convert_to_numpy(block(x)) for block in blocks)
        assert_close(scaled - x, 0.17 * (whole - x), 1e-5, "correction")
