"""PP-LCNet: MobileNetV1's blocks with hard-swish, larger kernels and attention where it is cheap.

Paper: https://arxiv.org/abs/2109.15099, figure 2 and table 1. Differs from the paper: nothing.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.mobilenet_v3 import pre_logits
from keras_convnets.layers import (
    Block,
    ConvNormAct,
    DepthwiseNormAct,
    SqueezeExcite,
    make_divisible,
)
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM
from keras_convnets.registry import Checkpoint, family

# Output channels, kernel sizes of the blocks, and whether there is squeeze-and-excitation; the
# first block of all stages but the first and the fifth has a stride of 2 (table 1).
STAGES = (
    (32, (3,), False),
    (64, (3, 3), False),
    (128, (3, 3), False),
    (256, (3, 5), False),
    (256, (5, 5, 5, 5), False),
    (512, (5, 5), True),
)
VARIANTS = {
    "lcnet_035": dict(alpha=0.35),
    "lcnet_050": dict(alpha=0.5),
    "lcnet_075": dict(alpha=0.75),
    "lcnet_100": dict(alpha=1.0),
    "lcnet_150": dict(alpha=1.5),
    "lcnet_test": dict(
        alpha=0.5,
        stages=(
            (16, (3,), False),
            (32, (3,), False),
            (32, (5, 3), True),
            (48, (3,), False),
            (48, (5,), False),
            (64, (5,), True),
        ),
        head={"width": 40},
    ),
}
WEIGHTS = {
    "lcnet_050.ra2_in1k": Checkpoint("apache-2.0", top1=63.138),
    "lcnet_075.ra2_in1k": Checkpoint("apache-2.0", top1=68.786),
    "lcnet_100.ra2_in1k": Checkpoint("apache-2.0", top1=72.13),
}
KEYS = [
    (r"^stem/conv", "conv_stem"),
    (r"^stem/norm", "bn1"),
    (r"^stage(\d)_block(\d+)", r"blocks.\1.\2"),
    (r"depthwise/conv", "conv_dw"),
    (r"depthwise/norm", "bn1"),
    (r"squeeze/(reduce|expand)", r"se.conv_\1"),
    (r"pointwise/conv", "conv_pw"),
    (r"pointwise/norm", "bn2"),
    (r"^head_conv", "conv_head"),
    (r"^head$", "classifier"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class DepthSepConv(Block):
    """Depthwise convolution, squeeze-and-excitation where wanted, and 1x1 convolution (figure 2).

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).
    """

    def __init__(
        self, channels: int, width: int, kernel_size: int, strides: int, squeeze: bool, **kwargs
    ):
        super().__init__(**kwargs)
        self.depthwise = DepthwiseNormAct(kernel_size, strides, "hard_silu")
        self.squeeze = (
            SqueezeExcite(channels, round(channels / 4), gate="hard_sigmoid") if squeeze else None
        )
        self.pointwise = ConvNormAct(width, activation="hard_silu")

    def call(self, x):
        x = self.depthwise(x)
        return self.pointwise(self.squeeze(x) if self.squeeze else x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=FAN_OUT_UNIFORM)
def lcnet(x, alpha, stages=STAGES):
    """Yields the output of the last block of each resolution: strides 2, 4, 8, 16, 32."""
    channels = make_divisible(16 * alpha)
    x = ConvNormAct(channels, 3, 2, "hard_silu", name="stem")(x)
    for stage, (width, kernels, squeeze) in enumerate(stages):
        strides = 1 if stage in (0, 4) else 2
        if strides > 1:
            yield x
        width = make_divisible(width * alpha)
        for i, kernel in enumerate(kernels):
            x = DepthSepConv(
                channels,
                width,
                kernel,
                strides if i == 0 else 1,
                squeeze,
                name=f"stage{stage}_block{i}",
            )(x)
            channels = width
    yield x


LCNet_035 = application("lcnet_035")
LCNet_050 = application("lcnet_050")
LCNet_075 = application("lcnet_075")
LCNet_100 = application("lcnet_100")
LCNet_150 = application("lcnet_150")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
