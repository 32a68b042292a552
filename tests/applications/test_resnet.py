"""ResNet against timm."""

from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def resnet_test():
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, layers=(1, 1, 2, 1), channels=(4, 8, 8, 8))


class TestResNet(FamilyTests):
    family = "resnet"
    reference = Timm(resnet_test=resnet_test)
    parity_variant = "resnet50"
