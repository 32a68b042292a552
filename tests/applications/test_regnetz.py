"""RegNetZ against timm."""

from test_regnet import small

from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def regnetz_test():
    wide = {"w0": 8, "wa": 6.0, "bottle_ratio": 4.0, "linear_out": True, "num_features": 40}
    return small(se_ratio=0.25, act_layer="silu", downsample=None, **wide)


class TestRegNetZ(FamilyTests):
    family = "regnetz"
    reference = Timm(regnetz_test=regnetz_test)
    parity_variant = "regnetz_040"
