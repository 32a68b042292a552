"""Pooling that Keras does not have."""

from __future__ import annotations

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_convnets")
class SoftPooling2D(keras.layers.Layer):
    """sum of exp(x) * x over the sum of exp(x), of each window and channel: a soft maximum.

    Stergiou et al. 2021 (https://arxiv.org/abs/2101.00440), equations 1 and 2. Input:
    (batch, height, width, channels). Output: (batch, floor((height - pool_size) / strides) + 1,
    and likewise of the width, channels): nothing is padded.

    The weights are a softmax of float32 numbers, from which the window's maximum is taken, so that
    no value is too large.

    Args:
        pool_size: side of the window.
        strides: in both directions; default: `pool_size`.
    """

    def __init__(self, pool_size: int = 2, strides: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.pool_size = pool_size
        self.strides = strides or pool_size

    def call(self, x):
        height, width = (self._outputs(size) for size in ops.shape(x)[1:3])
        windows = ops.stack(
            [
                x[:, row : row + (height - 1) * self.strides + 1 : self.strides][
                    :, :, column : column + (width - 1) * self.strides + 1 : self.strides
                ]
                for row in range(self.pool_size)
                for column in range(self.pool_size)
            ]
        )
        weights = ops.softmax(ops.cast(windows, "float32"), axis=0)
        return ops.sum(ops.cast(weights, x.dtype) * windows, axis=0)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        sizes = (size and self._outputs(size) for size in (height, width))
        return (batch, *sizes, channels)

    def _outputs(self, size):
        return (size - self.pool_size) // self.strides + 1
