"""MobileNetV1 against timm."""

import keras

from keras_convnets import create_model
from keras_convnets.graph import count
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def small(stages, head_width):
    from functools import partial

    import torch
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet

    return EfficientNet(
        decode_arch_def([[stage] for stage in stages]),
        num_features=head_width,
        stem_size=32,
        round_chs_fn=partial(round_channels, multiplier=0.5),
        act_layer=torch.nn.ReLU6,
    )


def mobilenetv1_test():
    stages = ["dsa_r1_k3_s1_c16", "dsa_r2_k3_s2_c32", "dsa_r1_k3_s2_c48", "dsa_r1_k3_s2_c48"]
    return small([*stages, "dsa_r1_k3_s2_c64"], head_width=0)


class TestMobileNetV1(FamilyTests):
    family = "mobilenet_v1"
    twins = ("mobilenetv1h_test",)
    reference = Timm(
        mobilenetv1_test=mobilenetv1_test,
        mobilenetv1h_test=lambda: small(["dsa_r1_k3_s1_c16", "dsa_r1_k3_s2_c32"], head_width=40),
    )
    parity_variant = "mobilenetv1_100"

    def test_depthwise_and_pointwise_cost_what_equation_5_says(self):
        model = create_model("mobilenetv1_100", weights=None, input_shape=(64, 64, 3))
        block = model.get_layer("stage3_block1")
        x = keras.Input((4, 4, 512))
        assert count(keras.Model(x, block(x))).macs == 4 * 4 * (9 * 512 + 512 * 512)
