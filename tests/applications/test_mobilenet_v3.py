"""MobileNetV3 against timm."""

import keras
import numpy as np

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def small(stages, activation, alpha=1.0, **arguments):
    from functools import partial

    import torch
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.mobilenetv3 import MobileNetV3, SqueezeExcite

    squeeze = partial(
        SqueezeExcite,
        gate_layer="hard_sigmoid",
        force_act_layer=torch.nn.ReLU,
        rd_round_fn=round_channels,
    )
    return MobileNetV3(
        decode_arch_def(stages),
        num_features=40,
        fix_stem=alpha < 0.75,
        round_chs_fn=partial(round_channels, multiplier=alpha),
        act_layer=getattr(torch.nn, activation),
        **{"se_layer": squeeze, **arguments},
    )


def mobilenetv3_test():
    stages = [
        ["ds_r1_k3_s2_e1_c16_se0.25_nre"],
        ["ir_r1_k3_s2_e4.5_c24_nre", "ir_r1_k3_s1_e3.67_c24_nre"],
        ["ir_r1_k5_s2_e4_c40_se0.25"],
        ["ir_r2_k3_s2_e2_c48"],
        ["cn_r1_k1_s1_c64"],
    ]
    return small(stages, "Hardswish", alpha=0.5)


def tf_mobilenetv3_test():
    """Also with the first block, the squeeze-and-excitation and the head of mobilenetv3_rw."""
    from functools import partial

    import torch
    from timm.models.mobilenetv3 import SqueezeExcite

    stages = [
        ["ds_r1_k3_s1_e1_c16_noskip"],
        ["ir_r1_k5_s2_e3_c24_se0.25_nhs"],
        ["ir_r1_k3_s2_e3_c32"],
        ["cn_r1_k1_s1_c48"],
    ]
    return small(
        stages,
        "ReLU",
        pad_type="same",
        norm_layer=partial(torch.nn.BatchNorm2d, eps=1e-3),
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid"),
        head_bias=False,
    )


class TestMobileNetV3(FamilyTests):
    family = "mobilenet_v3"
    reference = Timm(mobilenetv3_test=mobilenetv3_test, tf_mobilenetv3_test=tf_mobilenetv3_test)
    parity_variant = "mobilenetv3_small_100"
    # A convolution and a BatchNorm follow, which takes away again what it adds.
    no_gradient = "mobilenetv3_test/stage2_block0/project/norm/beta"

    def test_hard_swish_and_hard_sigmoid_are_the_papers(self):
        x = np.linspace(-5, 5, 101).astype("float32")
        gate = np.clip(x + 3, 0, 6) / 6
        for name, expected in (("hard_sigmoid", gate), ("hard_silu", x * gate)):
            ours = keras.ops.convert_to_numpy(keras.activations.get(name)(x))
            np.testing.assert_allclose(ours, expected, atol=1e-6)

    def test_the_last_convolution_comes_after_the_pooling(self):
        model = create_model("mobilenetv3_small_100", weights=None, include_top=False)
        assert model.output.shape[-1] == 576
        pooled = create_model(
            "mobilenetv3_small_100", weights=None, include_top=False, pooling="avg"
        )
        assert pooled.output.shape == (None, 1024)
