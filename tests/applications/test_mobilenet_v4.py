"""MobileNetV4 against timm."""

import keras
import numpy as np

from keras_convnets.layers import BlurPool2D, MultiQueryAttention
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm


def small(stages, activation, **arguments):
    import torch
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.mobilenetv3 import MobileNetV3

    return MobileNetV3(
        decode_arch_def(stages),
        num_features=40,
        head_norm=True,
        act_layer=getattr(torch.nn, activation),
        **arguments,
    )


def mobilenetv4_conv_test():
    stages = [
        ["er_r1_k3_s2_e3_c16"],
        ["uir_r1_a3_k5_s2_e2_c24", "uir_r1_a0_k0_s1_e2_c24"],
        ["cn_r1_k1_s1_c40"],
    ]
    return small(stages, "ReLU", aa_layer="avg")


def mobilenetv4_hybrid_test():
    stages = [
        ["er_r1_k3_s2_e2_c16"],
        ["uir_r1_a5_k3_s2_e2_c24", "mqa_r1_k3_h2_s1_v2_d16_c24", "uir_r1_a0_k0_s1_e2_c24"],
        ["uir_r1_a0_k3_s2_e2_c32", "mqa_r1_k3_h3_s1_d8_c32", "uir_r1_a0_k0_s1_e2_c32"],
        ["cn_r1_k1_s1_c40"],
    ]
    return small(stages, "GELU", aa_layer="blurpc", layer_scale_init_value=1e-5)


class TestMobileNetV4(FamilyTests):
    family = "mobilenet_v4"
    reference = Timm(
        mobilenetv4_conv_test=mobilenetv4_conv_test, mobilenetv4_hybrid_test=mobilenetv4_hybrid_test
    )
    parity_variant = "mobilenetv4_conv_small"
    # The same summand for all keys, which softmax takes away.
    no_gradient = r"key_reduce/norm/beta"
    # Queries, keys and values all read it, and two of them pad it.
    keeps_batchnorm = r"stage\d_block\d_norm$"
    # The BatchNorm after the pooling, of vectors that differ little from photograph to photograph,
    # magnifies what 4 bits lose.

    def test_all_heads_have_the_same_keys_and_values(self):
        x = images(2, 3, 5, 6)
        attention = MultiQueryAttention(6, heads=2, key_dim=4)
        ours = keras.ops.convert_to_numpy(attention(x)).reshape(2, 15, 6)
        query, key, value, project = (np.squeeze(w, (0, 1)) for w in attention.get_weights())
        rows, heads = x.reshape(2, 15, 6), []
        for i in range(2):
            logits = rows @ query[:, 4 * i : 4 * i + 4] @ (rows @ key).transpose(0, 2, 1)
            weights = np.exp(logits / 2)
            heads.append(weights / weights.sum(-1, keepdims=True) @ (rows @ value))
        np.testing.assert_allclose(ours, np.concatenate(heads, -1) @ project, atol=1e-5)

    def test_a_blur_keeps_the_mean_of_an_even_map(self):
        x = np.ones((1, 8, 8, 3), "float32")
        y = keras.ops.convert_to_numpy(BlurPool2D()(x))
        assert y.shape == (1, 4, 4, 3)
        np.testing.assert_allclose(y[:, 1:, 1:], 1)
        np.testing.assert_allclose(y[:, 0, 0], 9 / 16)
