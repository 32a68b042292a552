"""MobileNetV2 against timm."""

import pytest

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def mobilenetv2_130():
    from timm.models.efficientnet import _gen_mobilenet_v2

    return _gen_mobilenet_v2("mobilenetv2_100", 1.3)


def mobilenetv2_test():
    from functools import partial

    import torch
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet

    stages = ["ds_r1_k3_s1_c16", "ir_r2_k3_s2_e6_c24", "ir_r2_k3_s2_e6_c32"]
    stages += ["ir_r1_k3_s2_e6_c48", "ir_r1_k3_s2_e6_c64"]
    return EfficientNet(
        decode_arch_def([[stage] for stage in stages]),
        num_features=40,
        stem_size=32,
        round_chs_fn=partial(round_channels, multiplier=0.5),
        act_layer=torch.nn.ReLU6,
    )


class TestMobileNetV2(FamilyTests):
    family = "mobilenet_v2"
    reference = Timm(mobilenetv2_130=mobilenetv2_130, mobilenetv2_test=mobilenetv2_test)
    parity_variant = "mobilenetv2_100"

    @pytest.mark.parametrize("alpha", ["035", "050", "075", "100", "130", "140"])
    def test_the_last_convolution_never_shrinks_below_1280(self, alpha):
        model = create_model(f"mobilenetv2_{alpha}", weights=None, include_top=False)
        assert model.output.shape[-1] == max(1280, round(1280 * int(alpha) / 800) * 8)
