"""MobileNetV2: inverted residuals (narrow, wide, narrow) with linear bottlenecks.

Paper: https://arxiv.org/abs/1801.04381, table 2. Differs from the paper as timm does: symmetric
padding, and the 110d and 120d variants, which scale depth too and keep stem and head unscaled.
"""

from __future__ import annotations

import math

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import ConvNormAct, InvertedResidual, make_divisible
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM
from keras_convnets.layers.inverted import INVERTED_KEYS
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "mobilenetv2_035": dict(alpha=0.35),
    "mobilenetv2_050": dict(alpha=0.5),
    "mobilenetv2_075": dict(alpha=0.75),
    "mobilenetv2_100": dict(alpha=1.0),
    "mobilenetv2_110d": dict(alpha=1.1, depth_multiplier=1.2, scale_ends=False),
    "mobilenetv2_120d": dict(alpha=1.2, depth_multiplier=1.4, scale_ends=False),
    "mobilenetv2_130": dict(alpha=1.3),
    "mobilenetv2_140": dict(alpha=1.4),
    "mobilenetv2_test": dict(
        alpha=0.5,
        stages=((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 48, 1, 2), (6, 64, 1, 2)),
        head_width=40,
    ),
}
WEIGHTS = {
    "mobilenetv2_050.lamb_in1k": Checkpoint("apache-2.0", top1=65.928),
    "mobilenetv2_100.ra_in1k": Checkpoint("apache-2.0", top1=72.91),
    "mobilenetv2_110d.ra_in1k": Checkpoint("apache-2.0", top1=75.056),
    "mobilenetv2_120d.ra_in1k": Checkpoint("apache-2.0", top1=77.3),
    "mobilenetv2_140.ra_in1k": Checkpoint("apache-2.0", top1=76.528),
}
KEYS = [
    *INVERTED_KEYS,
    (r"^conv_head/conv", "conv_head"),
    (r"^conv_head/norm", "bn2"),
    (r"^head$", "classifier"),
]
# Expansion, output channels, repeats and stride of each stage (table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=FAN_OUT_UNIFORM)
def mobilenet_v2(x, alpha, depth_multiplier=1.0, scale_ends=True, stages=STAGES, head_width=1280):
    """Yields the output of the last stage of each resolution: strides 2, 4, 8, 16, 32.

    `scale_ends`: whether `alpha` scales the stem and, beyond 1, the head, and `depth_multiplier`
    the first and the last stage.
    """
    channels = make_divisible(32 * alpha) if scale_ends else 32
    x = ConvNormAct(channels, 3, 2, "relu6", name="stem")(x)
    for stage, (expansion, width, repeats, strides) in enumerate(stages):
        if strides > 1:
            yield x
        width = make_divisible(width * alpha)
        if scale_ends or 0 < stage < len(stages) - 1:
            repeats = math.ceil(repeats * depth_multiplier)
        for i in range(repeats):
            x = InvertedResidual(
                width,
                expanded=channels * expansion,
                strides=strides if i == 0 else 1,
                activation="relu6",
                expand=expansion > 1,
                skip=channels == width and (i > 0 or strides == 1),
                name=f"stage{stage}_block{i}",
            )(x)
            channels = width
    yield x
    if scale_ends:
        head_width = max(head_width, make_divisible(head_width * alpha))
    return ConvNormAct(head_width, activation="relu6", name="conv_head")(x)


MobileNetV2_035 = application("mobilenetv2_035")
MobileNetV2_050 = application("mobilenetv2_050")
MobileNetV2_075 = application("mobilenetv2_075")
MobileNetV2_100 = application("mobilenetv2_100")
MobileNetV2_110d = application("mobilenetv2_110d")
MobileNetV2_120d = application("mobilenetv2_120d")
MobileNetV2_130 = application("mobilenetv2_130")
MobileNetV2_140 = application("mobilenetv2_140")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
