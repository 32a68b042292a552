"""Attention over positions whose result is the same at all of them."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.fast import Activation, Conv2D, LayerNormalization
from keras_convnets.layers.initializers import FAN_IN_NORMAL, FAN_OUT_NORMAL


@keras.saving.register_keras_serializable("keras_convnets")
class GlobalContext(Block):
    """x + mlp(a mean of x over the map), the mean weighted by a softmax over positions.

    Cao et al. 2019 (https://arxiv.org/abs/1904.11492), figure 4d. Input and output: (batch, height,
    width, channels); the mlp has an eighth of the channels inside.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.attend = Conv2D(1, 1, kernel_initializer=FAN_IN_NORMAL)
        self.positions = keras.layers.Reshape((1, -1))
        self.rows = keras.layers.Reshape((-1, channels))
        self.map = keras.layers.Reshape((1, 1, channels))
        self.fc1 = Conv2D(channels // 8, 1, kernel_initializer=FAN_OUT_NORMAL)
        self.norm = LayerNormalization(epsilon=1e-6)
        self.activation = Activation("relu")
        self.fc2 = Conv2D(channels, 1, kernel_initializer="zeros")

    def context(self, x):
        """The weighted mean, (batch, 1, 1, channels)."""
        weights = ops.softmax(self.positions(self.attend(x)))
        return self.map(ops.matmul(weights, self.rows(x)))

    def call(self, x):
        return x + self.fc2(self.activation(self.norm(self.fc1(self.context(x)))))
