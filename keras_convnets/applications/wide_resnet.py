"""Wide ResNet for small images: few pre-activation blocks of many channels.

Paper: https://arxiv.org/abs/1605.07146, table 1 and section 3. Differs from the paper: nothing. For
CIFAR it is built with input_shape=(32, 32, 3) and 10 or 100 classes; the ImageNet ones are
wide_resnet50_2 and wide_resnet101_2 of ResNet.
"""

from __future__ import annotations

import functools

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, batch_norm, convolution
from keras_convnets.layers.fast import Activation, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_IN_NORMAL
from keras_convnets.registry import Checkpoint, family

# Depth is the number of convolutions; the widths of the stages are 16, 32 and 64 times `factor`.
VARIANTS = {
    "wrn_16_4": dict(depth=16, factor=4),
    "wrn_16_4_dropout": dict(depth=16, factor=4, dropout=0.3),
    "wrn_16_8": dict(depth=16, factor=8),
    "wrn_22_8": dict(depth=22, factor=8),
    "wrn_22_10": dict(depth=22, factor=10),
    "wrn_28_10": dict(depth=28, factor=10),
    "wrn_28_10_dropout": dict(depth=28, factor=10, dropout=0.3),
    "wrn_28_12": dict(depth=28, factor=12),
    "wrn_40_1": dict(depth=40, factor=1),
    "wrn_40_2": dict(depth=40, factor=2),
    "wrn_40_4": dict(depth=40, factor=4),
    "wrn_40_8": dict(depth=40, factor=8),
    "wrn_test": dict(depth=16, factor=0.5),
}
WEIGHTS: dict[str, Checkpoint] = {}
KEYS = [
    (r"^stem$", "conv1"),
    (r"^stage(\d)_block(\d+)", r"block\1.layer.\2"),
    (r"/norm(\d)$", r"/bn\1"),
    (r"/shortcut$", "/convShortcut"),
    (r"^final_norm$", "bn1"),
    (r"^head$", "fc"),
]


convolution = functools.partial(convolution, kernel_initializer=FAN_IN_NORMAL)


@keras.saving.register_keras_serializable("keras_convnets")
class WideBlock(Block):
    """x + F(x), where F is twice BatchNorm, ReLU and a 3x3 convolution, with dropout between.

    Figure 1d. Where the shape changes, x is normalised, rectified and projected. Input: (batch,
    height, width, channels). Output: (batch, ceil(height / strides), ceil(width / strides), width).
    """

    def __init__(
        self, width: int, strides: int = 1, project: bool = False, dropout: float = 0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.norm1 = batch_norm()
        self.act1 = Activation("relu")
        self.pad = ZeroPadding2D(1)
        self.conv1 = convolution(width, 3, strides=strides)
        self.norm2 = batch_norm()
        self.act2 = Activation("relu")
        self.dropout = keras.layers.Dropout(dropout)
        self.conv2 = convolution(width, 3, padding="same")
        self.shortcut = convolution(width, 1, strides=strides) if project else None

    def call(self, x):
        y = self.act1(self.norm1(x))
        shortcut = self.shortcut(y) if self.shortcut else x
        y = self.act2(self.norm2(self.conv1(self.pad(y))))
        return shortcut + self.conv2(self.dropout(y))


@family(VARIANTS, WEIGHTS, KEYS)
def wide_resnet(x, depth, factor, dropout=0.0):
    """Yields the output of each stage: strides 1, 2, 4."""
    x = convolution(16, 3, padding="same", name="stem")(x)
    for stage, width in enumerate((16, 32, 64), start=1):
        width = int(width * factor)
        for i in range((depth - 4) // 6):
            strides = 2 if stage > 1 and i == 0 else 1
            project = strides > 1 or x.shape[-1] != width
            x = WideBlock(width, strides, project, dropout, name=f"stage{stage}_block{i}")(x)
        yield x
    x = batch_norm(name="final_norm")(x)
    return Activation("relu", name="final_act")(x)


WRN_16_4 = application("wrn_16_4")
WRN_16_4_Dropout = application("wrn_16_4_dropout")
WRN_16_8 = application("wrn_16_8")
WRN_22_8 = application("wrn_22_8")
WRN_22_10 = application("wrn_22_10")
WRN_28_10 = application("wrn_28_10")
WRN_28_10_Dropout = application("wrn_28_10_dropout")
WRN_28_12 = application("wrn_28_12")
WRN_40_1 = application("wrn_40_1")
WRN_40_2 = application("wrn_40_2")
WRN_40_4 = application("wrn_40_4")
WRN_40_8 = application("wrn_40_8")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
