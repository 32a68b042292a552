"""A normalisation and an activation that were searched for together."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.direct import Direct


@keras.saving.register_keras_serializable("keras_convnets")
class EvoNorm2D(Direct, keras.layers.Layer):
    """gamma * x * sigmoid(v * x) / s + beta, with s the standard deviation of x in a group.

    Liu et al. 2020 (https://arxiv.org/abs/2004.02967), EvoNorm-S0 of table 1, which needs neither
    statistics of the batch nor an activation after it. Input and output: (batch, height, width,
    channels). The deviation, over the map and the channels of a group, is taken in float32 whatever
    the compute dtype.

    Args:
        group_size: channels of a group.
        gated: whether there is the factor sigmoid(v * x).
        epsilon: added to the variance.
        zero_init: start with gamma = 0.

    Raises:
        ValueError: for channels that are no multiple of `group_size`.
    """

    def __init__(
        self,
        group_size: int = 16,
        gated: bool = True,
        epsilon: float = 1e-3,
        zero_init: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.group_size = group_size
        self.gated = gated
        self.epsilon = epsilon
        self.zero_init = zero_init

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.group_size:
            raise ValueError(
                f"EvoNorm2D: the {channels} channels of the input must be a multiple of "
                f"group_size={self.group_size}."
            )
        start = "zeros" if self.zero_init else "ones"
        self.gamma = self.add_weight(shape=(channels,), initializer=start, name="gamma")
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta")
        if self.gated:
            self.v = self.add_weight(shape=(channels,), initializer="ones", name="v")

    def call(self, x):
        y = x * ops.sigmoid(x * self.v) if self.gated else x
        x = ops.cast(x, "float32")
        variance = self._group_mean(ops.square(x - self._group_mean(x)))
        y = y * ops.cast(ops.rsqrt(variance + self.epsilon), y.dtype)
        return y * self.gamma + self.beta

    def _group_mean(self, x):
        """The mean over the map and a group's channels, at each channel."""
        size, channels = self.group_size, x.shape[-1]
        groups = ops.reshape(ops.mean(x, axis=(1, 2)), (-1, channels // size, size))
        means = ops.repeat(ops.mean(groups, axis=-1), size, axis=-1)
        return ops.reshape(means, (-1, 1, 1, channels))

    def compute_output_shape(self, input_shape):
        return input_shape
