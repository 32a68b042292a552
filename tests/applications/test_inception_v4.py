"""Inception-v4 against timm."""

import importlib
from unittest import mock

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def inception_v4_test():
    from torch.nn import Identity, Linear

    inception_v4 = importlib.import_module("timm.models.inception_v4")
    conv_norm_act = inception_v4.ConvNormAct

    def narrow(in_channels, out_channels, **conv):
        in_channels = in_channels if in_channels == 3 else in_channels // 32
        return conv_norm_act(in_channels, out_channels // 32, **conv)

    with mock.patch.object(inception_v4, "ConvNormAct", narrow):
        module = inception_v4.InceptionV4()
    for i in (*range(6, 10), *range(11, 18), 20, 21):
        module.features[i] = Identity()
    module.last_linear = Linear(48, 1000)
    return module


class TestInceptionV4(FamilyTests):
    family = "inception_v4"
    reference = Timm(inception_v4_test=inception_v4_test)
    parity_variant = "inception_v4"
    size = 112  # with fewer pixels the last map is one pixel, whose rounding nothing averages
    unpadded = 40

    def test_the_grids_are_those_of_figures_3_and_9(self):
        model = create_model("inception_v4", weights=None, input_shape=(299, 299, 3), features=True)
        sizes = [tap.shape[1:] for tap in model.outputs]
        assert sizes == [
            (147, 147, 64),
            (73, 73, 160),
            (35, 35, 384),
            (17, 17, 1024),
            (8, 8, 1536),
        ]
