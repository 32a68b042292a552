"""Attention over channels that is lighter than squeeze-and-excitation."""

from __future__ import annotations

import math

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.fast import Activation, Conv2D, GlobalAveragePooling2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL, TORCH_UNIFORM


@keras.saving.register_keras_serializable("keras_convnets")
class EffectiveSqueezeExcite(Block):
    """x * hard_sigmoid(fc(mean of x over the map)), one layer for squeeze-and-excitation's two.

    Lee and Park 2020 (CenterMask, https://arxiv.org/abs/1911.06667), equation 3. Input and output:
    (batch, height, width, channels).
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.pool = GlobalAveragePooling2D(keepdims=True)
        self.fc = Conv2D(channels, 1, kernel_initializer=FAN_OUT_NORMAL)
        self.gate = Activation("hard_sigmoid")

    def call(self, x):
        return x * self.gate(self.fc(self.pool(x)))


@keras.saving.register_keras_serializable("keras_convnets")
class EfficientChannelAttention(Block):
    """x * sigmoid(conv(mean of x over the map)), a 1-D convolution along the channels.

    Wang et al. 2020 (ECA-Net, https://arxiv.org/abs/1910.03151), equations 9 and 12: its kernel
    has by default the odd size nearest to log2(channels) / 2 + 1 / 2, at least 3. Input and output:
    (batch, height, width, channels).
    """

    def __init__(self, channels: int, kernel_size: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.pool = GlobalAveragePooling2D()
        size = int((math.log2(channels) + 1) / 2)
        self.conv = keras.layers.Conv1D(
            1,
            kernel_size or max(size + 1 - size % 2, 3),
            padding="same",
            use_bias=False,
            kernel_initializer=TORCH_UNIFORM,
        )
        self.gate = Activation("sigmoid")

    def call(self, x):
        y = self.conv(self.pool(x)[..., None])
        return x * ops.reshape(self.gate(y), (-1, 1, 1, x.shape[-1]))
