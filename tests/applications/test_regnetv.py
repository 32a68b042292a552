"""RegNetV against timm."""

from test_regnet import small

from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def regnetv_test():
    return small(se_ratio=0.25, preact=True, act_layer="silu", downsample="avg")


class TestRegNetV(FamilyTests):
    family = "regnetv"
    reference = Timm(regnetv_test=regnetv_test)
    parity_variant = "regnetv_040"
    # Of sums of branches, and after the squeeze-and-excitation.
    keeps_batchnorm = r"stage\d_block\d_norm[13]$"
