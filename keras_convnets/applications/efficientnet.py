"""EfficientNet: inverted residuals scaled in width, depth and resolution together.

Paper: https://arxiv.org/abs/1905.11946, table 1. Lite drops squeeze-and-excitation and scales
neither stem nor head. The tf_ variants pad as TensorFlow does and have its BatchNorm epsilon, 1e-3,
like the published models; the others pad symmetrically. The cc_ ones mix the kernels of their last
three stages from experts: https://arxiv.org/abs/1904.04971, section 4.
"""

from __future__ import annotations

import math

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    CondInvertedResidual,
    ConvNormAct,
    ConvResidual,
    FusedInvertedResidual,
    InvertedResidual,
    make_divisible,
)
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM
from keras_convnets.layers.inverted import INVERTED_KEYS
from keras_convnets.registry import Checkpoint, family

# Block, repeats, kernel, stride, expansion, output channels and squeeze-and-excitation of each
# stage (table 1).
B = (
    ("inverted", 1, 3, 1, 1, 16, True),
    ("inverted", 2, 3, 2, 6, 24, True),
    ("inverted", 2, 5, 2, 6, 40, True),
    ("inverted", 3, 3, 2, 6, 80, True),
    ("inverted", 3, 5, 1, 6, 112, True),
    ("inverted", 4, 5, 2, 6, 192, True),
    ("inverted", 1, 3, 1, 6, 320, True),
)
LITE = dict(rows=tuple((*row[:-1], False) for row in B), activation="relu6", scale_ends=False)
# Factors of the paper: of width and of depth. The Lite networks have those of B0 to B4.
SCALES = {
    "b0": dict(alpha=1.0, depth=1.0),
    "b1": dict(alpha=1.0, depth=1.1),
    "b2": dict(alpha=1.1, depth=1.2),
    "b3": dict(alpha=1.2, depth=1.4),
    "b4": dict(alpha=1.4, depth=1.8),
    "b5": dict(alpha=1.6, depth=2.2),
    "b6": dict(alpha=1.8, depth=2.6),
    "b7": dict(alpha=2.0, depth=3.1),
    "b8": dict(alpha=2.2, depth=3.6),
    "l2": dict(alpha=4.3, depth=5.3),
}
SYMMETRIC = {f"efficientnet_{name}": dict(rows=B, **scale) for name, scale in SCALES.items()}
SYMMETRIC |= {f"efficientnet_lite{i}": dict(**LITE, **SCALES[f"b{i}"]) for i in range(5)}
CC = tuple(("cond" if index > 3 else "inverted", *row[1:]) for index, row in enumerate(B))
TENSORFLOW = dict(padding="same", epsilon=1e-3)

VARIANTS = {
    **SYMMETRIC,
    **{f"tf_{name}": dict(**variant, **TENSORFLOW) for name, variant in SYMMETRIC.items()},
    "tf_efficientnet_cc_b0_4e": dict(rows=CC, experts=4, **TENSORFLOW),
    "tf_efficientnet_cc_b0_8e": dict(rows=CC, experts=8, **TENSORFLOW),
    "tf_efficientnet_cc_b1_8e": dict(rows=CC, experts=8, **SCALES["b1"], **TENSORFLOW),
    "efficientnet_test": dict(
        rows=(
            ("inverted", 1, 3, 1, 1, 16, True),
            ("inverted", 2, 5, 2, 4, 24, True),
            ("inverted", 1, 3, 2, 4, 32, False),
        ),
        alpha=0.5,
        depth=1.1,
        head_width=48,
    ),
    "tf_efficientnet_lite_test": dict(
        rows=(("inverted", 1, 3, 1, 1, 8, False), ("inverted", 1, 5, 2, 3, 16, False)),
        activation="relu6",
        scale_ends=False,
        alpha=1.2,
        depth=1.4,
        stem=16,
        head_width=40,
        **TENSORFLOW,
    ),
    "tf_efficientnet_cc_test": dict(
        rows=(("inverted", 1, 3, 2, 1, 8, False), ("cond", 2, 5, 2, 3, 16, True)),
        experts=3,
        stem=16,
        head_width=40,
        **TENSORFLOW,
    ),
}
APACHE = "apache-2.0"
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# Evaluation size and crop of each scale.
AT = {
    "b1": dict(input_size=240, crop=0.882),
    "b2": dict(input_size=260, crop=0.89),
    "b3": dict(input_size=300, crop=0.904),
    "b4": dict(input_size=380, crop=0.922),
    "b5": dict(input_size=456, crop=0.934),
    "b6": dict(input_size=528, crop=0.942),
    "b7": dict(input_size=600, crop=0.949),
    "b8": dict(input_size=672, crop=0.954),
}
WEIGHTS = {
    "efficientnet_b0.ra_in1k": Checkpoint(APACHE, top1=77.698),
    "efficientnet_b0.ra4_e3600_r224_in1k": Checkpoint(APACHE, crop=0.9, **HALF, top1=78.568),
    "efficientnet_b1.ra4_e3600_r240_in1k": Checkpoint(
        APACHE, input_size=240, crop=0.9, **HALF, top1=80.404
    ),
    "efficientnet_b1.ft_in1k": Checkpoint(APACHE, top1=77.592),
    "efficientnet_b2.ra_in1k": Checkpoint(APACHE, input_size=256, top1=79.324),
    "efficientnet_b3.ra2_in1k": Checkpoint(APACHE, input_size=288, top1=81.472),
    "efficientnet_b4.ra2_in1k": Checkpoint(APACHE, input_size=320, top1=82.658),
    "efficientnet_b5.sw_in12k_ft_in1k": Checkpoint(
        APACHE, input_size=448, crop=1.0, crop_mode="squash", top1=85.894
    ),
    "efficientnet_b5.sw_in12k": Checkpoint(
        APACHE, input_size=416, crop=0.95, labels="imagenet-12k"
    ),
    "efficientnet_lite0.ra_in1k": Checkpoint(APACHE, top1=75.488),
    "tf_efficientnet_b0.ns_jft_in1k": Checkpoint(APACHE, top1=78.68),
    "tf_efficientnet_b0.aa_in1k": Checkpoint(APACHE, top1=76.882),
    "tf_efficientnet_b0.ap_in1k": Checkpoint(APACHE, **HALF, top1=77.1),
    "tf_efficientnet_b0.in1k": Checkpoint(APACHE, top1=76.542),
    "tf_efficientnet_b1.ns_jft_in1k": Checkpoint(APACHE, **AT["b1"], top1=81.388),
    "tf_efficientnet_b1.aa_in1k": Checkpoint(APACHE, **AT["b1"], top1=78.84),
    "tf_efficientnet_b1.ap_in1k": Checkpoint(APACHE, **AT["b1"], **HALF, top1=79.288),
    "tf_efficientnet_b1.in1k": Checkpoint(APACHE, **AT["b1"], top1=78.546),
    "tf_efficientnet_b2.ns_jft_in1k": Checkpoint(APACHE, **AT["b2"], top1=82.412),
    "tf_efficientnet_b2.aa_in1k": Checkpoint(APACHE, **AT["b2"], top1=80.074),
    "tf_efficientnet_b2.ap_in1k": Checkpoint(APACHE, **AT["b2"], **HALF, top1=80.3),
    "tf_efficientnet_b2.in1k": Checkpoint(APACHE, **AT["b2"], top1=79.612),
    "tf_efficientnet_b3.ns_jft_in1k": Checkpoint(APACHE, **AT["b3"], top1=84.054),
    "tf_efficientnet_b3.aa_in1k": Checkpoint(APACHE, **AT["b3"], top1=81.648),
    "tf_efficientnet_b3.ap_in1k": Checkpoint(APACHE, **AT["b3"], **HALF, top1=81.842),
    "tf_efficientnet_b3.in1k": Checkpoint(APACHE, **AT["b3"], top1=80.878),
    "tf_efficientnet_b4.ns_jft_in1k": Checkpoint(APACHE, **AT["b4"], top1=85.156),
    "tf_efficientnet_b4.aa_in1k": Checkpoint(APACHE, **AT["b4"], top1=83.04),
    "tf_efficientnet_b4.ap_in1k": Checkpoint(APACHE, **AT["b4"], **HALF, top1=83.246),
    "tf_efficientnet_b4.in1k": Checkpoint(APACHE, **AT["b4"], top1=82.598),
    "tf_efficientnet_b5.ns_jft_in1k": Checkpoint(APACHE, **AT["b5"], top1=86.096),
    "tf_efficientnet_b5.aa_in1k": Checkpoint(APACHE, **AT["b5"], top1=83.696),
    "tf_efficientnet_b5.ap_in1k": Checkpoint(APACHE, **AT["b5"], **HALF, top1=84.258),
    "tf_efficientnet_b5.in1k": Checkpoint(APACHE, **AT["b5"], top1=83.17),
    "tf_efficientnet_b5.ra_in1k": Checkpoint(APACHE, **AT["b5"], top1=83.834),
    "tf_efficientnet_b6.ns_jft_in1k": Checkpoint(APACHE, **AT["b6"], top1=86.476),
    "tf_efficientnet_b6.aa_in1k": Checkpoint(APACHE, **AT["b6"], top1=84.124),
    "tf_efficientnet_b6.ap_in1k": Checkpoint(APACHE, **AT["b6"], **HALF, top1=84.794),
    "tf_efficientnet_b7.ns_jft_in1k": Checkpoint(APACHE, **AT["b7"], top1=86.85),
    "tf_efficientnet_b7.aa_in1k": Checkpoint(APACHE, **AT["b7"], top1=84.424),
    "tf_efficientnet_b7.ap_in1k": Checkpoint(APACHE, **AT["b7"], **HALF, top1=85.132),
    "tf_efficientnet_b7.ra_in1k": Checkpoint(APACHE, **AT["b7"], top1=84.926),
    "tf_efficientnet_b8.ap_in1k": Checkpoint(APACHE, **AT["b8"], **HALF, top1=85.358),
    "tf_efficientnet_b8.ra_in1k": Checkpoint(APACHE, **AT["b8"], top1=85.344),
    "tf_efficientnet_l2.ns_jft_in1k_475": Checkpoint(
        APACHE, input_size=475, crop=0.936, top1=88.246
    ),
    "tf_efficientnet_l2.ns_jft_in1k": Checkpoint(APACHE, input_size=800, crop=0.96, top1=88.36),
    "tf_efficientnet_cc_b0_4e.in1k": Checkpoint(APACHE, **HALF, top1=77.324),
    "tf_efficientnet_cc_b0_8e.in1k": Checkpoint(APACHE, **HALF, top1=77.956),
    "tf_efficientnet_cc_b1_8e.in1k": Checkpoint(APACHE, **AT["b1"], **HALF, top1=79.318),
    "tf_efficientnet_lite0.in1k": Checkpoint(APACHE, **HALF, top1=74.846),
    "tf_efficientnet_lite1.in1k": Checkpoint(APACHE, **AT["b1"], **HALF, top1=76.674),
    "tf_efficientnet_lite2.in1k": Checkpoint(APACHE, **AT["b2"], **HALF, top1=77.47),
    "tf_efficientnet_lite3.in1k": Checkpoint(
        APACHE, **AT["b3"], interpolation="bilinear", **HALF, top1=79.808
    ),
    "tf_efficientnet_lite4.in1k": Checkpoint(
        APACHE, input_size=380, crop=0.92, interpolation="bilinear", **HALF, top1=81.54
    ),
}
KEYS = [
    *INVERTED_KEYS,
    (r"fused/conv", "conv_exp"),
    (r"fused/norm", "bn1"),
    (r"linear/conv", "conv_pwl"),
    (r"linear/norm", "bn2"),
    (r"routing/weigh", "routing_fn"),
    (r"only/conv", "conv"),
    (r"only/norm", "bn1"),
    (r"^conv_head/conv", "conv_head"),
    (r"^conv_head/norm", "bn2"),
    (r"^head$", "classifier"),
]


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=FAN_OUT_UNIFORM)
def efficientnet(
    x,
    rows,
    alpha=1.0,
    depth=1.0,
    stem=32,
    head_width=1280,
    scale_ends=True,
    keep=0.9,
    activation="silu",
    padding="symmetric",
    epsilon=1e-5,
    experts=None,
    drop_path_rate=0.0,
):
    """Yields the output of the last stage of each resolution: strides 2, 4, 8, 16, 32.

    `alpha` scales widths, `depth` repeats. `scale_ends`: whether `alpha` scales stem and head, and
    `depth` the first and the last stage. `keep`: as in `make_divisible`. `experts`: how many
    kernels a convolution in a `"cond"` block mixes.
    """
    if scale_ends:
        stem = make_divisible(stem * alpha, keep=keep)
        head_width = make_divisible(head_width * alpha, keep=keep)
    ends = () if scale_ends else (0, len(rows) - 1)
    depths = [
        repeats if stage in ends else math.ceil(repeats * depth)
        for stage, (_, repeats, *_) in enumerate(rows)
    ]
    convention = dict(activation=activation, padding=padding, epsilon=epsilon)
    x = ConvNormAct(stem, 3, 2, name="stem", **convention)(x)
    channels = stem
    index = 0
    for stage, (block, _, kernel, strides, expansion, width, squeeze) in enumerate(rows):
        if strides > 1:
            yield x
        width = make_divisible(width * alpha, keep=keep)
        for i in range(depths[stage]):
            arguments = dict(
                kernel_size=kernel,
                strides=strides if i == 0 else 1,
                skip=channels == width and (i > 0 or strides == 1) and block != "edge",
                drop_path=drop_path_rate * index / sum(depths),
                name=f"stage{stage}_block{i}",
                **convention,
            )
            if block == "conv":
                x = ConvResidual(width, **arguments)(x)
            elif block == "fused":
                x = FusedInvertedResidual(width, channels * expansion, **arguments)(x)
            elif block == "edge":
                # Published so: it expands its output's channels, not its input's, and never skips.
                x = FusedInvertedResidual(width, width * expansion, **arguments)(x)
            elif block == "cond":
                x = CondInvertedResidual(
                    width,
                    channels * expansion,
                    experts,
                    squeeze=channels // 4 if squeeze else 0,
                    **arguments,
                )(x)
            else:
                x = InvertedResidual(
                    width,
                    channels * expansion,
                    expand=expansion > 1,
                    squeeze=channels // 4 if squeeze else 0,
                    squeeze_activation=activation,
                    **arguments,
                )(x)
            channels = width
            index += 1
    yield x
    return ConvNormAct(head_width, name="conv_head", **convention)(x)


EfficientNetB0 = application("efficientnet_b0")
EfficientNetB1 = application("efficientnet_b1")
EfficientNetB2 = application("efficientnet_b2")
EfficientNetB3 = application("efficientnet_b3")
EfficientNetB4 = application("efficientnet_b4")
EfficientNetB5 = application("efficientnet_b5")
EfficientNetB6 = application("efficientnet_b6")
EfficientNetB7 = application("efficientnet_b7")
EfficientNetB8 = application("efficientnet_b8")
EfficientNetL2 = application("efficientnet_l2")
EfficientNetLite0 = application("efficientnet_lite0")
EfficientNetLite1 = application("efficientnet_lite1")
EfficientNetLite2 = application("efficientnet_lite2")
EfficientNetLite3 = application("efficientnet_lite3")
EfficientNetLite4 = application("efficientnet_lite4")
TFEfficientNetB0 = application("tf_efficientnet_b0")
TFEfficientNetB1 = application("tf_efficientnet_b1")
TFEfficientNetB2 = application("tf_efficientnet_b2")
TFEfficientNetB3 = application("tf_efficientnet_b3")
TFEfficientNetB4 = application("tf_efficientnet_b4")
TFEfficientNetB5 = application("tf_efficientnet_b5")
TFEfficientNetB6 = application("tf_efficientnet_b6")
TFEfficientNetB7 = application("tf_efficientnet_b7")
TFEfficientNetB8 = application("tf_efficientnet_b8")
TFEfficientNetL2 = application("tf_efficientnet_l2")
TFEfficientNetCCB0_4e = application("tf_efficientnet_cc_b0_4e")
TFEfficientNetCCB0_8e = application("tf_efficientnet_cc_b0_8e")
TFEfficientNetCCB1_8e = application("tf_efficientnet_cc_b1_8e")
TFEfficientNetLite0 = application("tf_efficientnet_lite0")
TFEfficientNetLite1 = application("tf_efficientnet_lite1")
TFEfficientNetLite2 = application("tf_efficientnet_lite2")
TFEfficientNetLite3 = application("tf_efficientnet_lite3")
TFEfficientNetLite4 = application("tf_efficientnet_lite4")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
