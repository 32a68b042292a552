"""PP-LCNet against timm."""

from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def lcnet_test():
    from functools import partial

    import torch
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.mobilenetv3 import MobileNetV3, SqueezeExcite

    stages = [
        ["dsa_r1_k3_s1_c16"],
        ["dsa_r1_k3_s2_c32"],
        ["dsa_r1_k5_s2_c32_se0.25", "dsa_r1_k3_s1_c32_se0.25"],
        ["dsa_r1_k3_s2_c48"],
        ["dsa_r1_k5_s1_c48"],
        ["dsa_r1_k5_s2_c64_se0.25"],
    ]
    return MobileNetV3(
        decode_arch_def(stages),
        stem_size=16,
        num_features=40,
        round_chs_fn=partial(round_channels, multiplier=0.5),
        act_layer=torch.nn.Hardswish,
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=torch.nn.ReLU),
    )


class TestLCNet(FamilyTests):
    family = "lcnet"
    reference = Timm(lcnet_test=lcnet_test)
    parity_variant = "lcnet_050"
