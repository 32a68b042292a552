"""ResNet-C, -D, -S and -T against timm."""

from test_resnet_attention import timm_resnet

from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def resnet_d_test():
    from torch import nn

    stem = {"stem_type": "deep", "stem_width": 8, "avg_down": True, "aa_layer": nn.AvgPool2d}
    return timm_resnet(None, "BasicBlock", (1, 1, 2, 1), channels=(16, 16, 24, 24), **stem)


class TestResNetD(FamilyTests):
    family = "resnet_d"
    reference = Timm(resnet_d_test=resnet_d_test)
    parity_variant = "resnet18d"
