"""MobileNetV1: every convolution is a depthwise 3x3 and a pointwise 1x1.

Paper: https://arxiv.org/abs/1704.04861, table 1. Differs from the paper as timm does: symmetric
padding, ReLU6, and the 100h variant, which has one more 1x1 convolution before the pooling.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, ConvNormAct, DepthwiseNormAct, make_divisible
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "mobilenetv1_100": dict(alpha=1.0),
    "mobilenetv1_100h": dict(alpha=1.0, head_width=1024),
    "mobilenetv1_125": dict(alpha=1.25),
    "mobilenetv1_test": dict(
        alpha=0.5, stages=((16, 1, 1), (32, 2, 2), (48, 1, 2), (48, 1, 2), (64, 1, 2))
    ),
    "mobilenetv1h_test": dict(alpha=0.5, stages=((16, 1, 1), (32, 1, 2)), head_width=40),
}
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WEIGHTS = {
    "mobilenetv1_100.ra4_e3600_r224_in1k": Checkpoint("apache-2.0", **HALF, top1=75.388),
    "mobilenetv1_100h.ra4_e3600_r224_in1k": Checkpoint("apache-2.0", **HALF, top1=75.664),
    "mobilenetv1_125.ra4_e3600_r224_in1k": Checkpoint("apache-2.0", crop=0.9, **HALF, top1=76.92),
}
KEYS = [
    (r"^stem/conv", "conv_stem"),
    (r"^stem/norm", "bn1"),
    (r"^stage(\d)_block(\d+)", r"blocks.\1.\2"),
    (r"depthwise/conv", "conv_dw"),
    (r"depthwise/norm", "bn1"),
    (r"pointwise/conv", "conv_pw"),
    (r"pointwise/norm", "bn2"),
    (r"^conv_head/conv", "conv_head"),
    (r"^conv_head/norm", "bn2"),
    (r"^head$", "classifier"),
]
# Output channels, repeats and stride of each stage (table 1).
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))


@keras.saving.register_keras_serializable("keras_convnets")
class SeparableBlock(Block):
    """Depthwise 3x3 convolution, then 1x1, each with BatchNorm and ReLU6 (figure 3 right).

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).
    """

    def __init__(self, width: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.depthwise = DepthwiseNormAct(3, strides, "relu6")
        self.pointwise = ConvNormAct(width, activation="relu6")

    def call(self, x):
        return self.pointwise(self.depthwise(x))


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=FAN_OUT_UNIFORM)
def mobilenet_v1(x, alpha, stages=STAGES, head_width=None):
    """Yields the output of the last block of each resolution: strides 2, 4, 8, 16, 32.

    `head_width`: channels of a 1x1 convolution after the last stage, scaled by `alpha` beyond 1.
    """
    x = ConvNormAct(make_divisible(32 * alpha), 3, 2, "relu6", name="stem")(x)
    for stage, (width, repeats, strides) in enumerate(stages):
        if strides > 1:
            yield x
        for i in range(repeats):
            x = SeparableBlock(
                make_divisible(width * alpha),
                strides if i == 0 else 1,
                name=f"stage{stage}_block{i}",
            )(x)
    yield x
    if head_width:
        head_width = max(head_width, make_divisible(head_width * alpha))
        return ConvNormAct(head_width, activation="relu6", name="conv_head")(x)


MobileNetV1_100 = application("mobilenetv1_100")
MobileNetV1_100h = application("mobilenetv1_100h")
MobileNetV1_125 = application("mobilenetv1_125")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
