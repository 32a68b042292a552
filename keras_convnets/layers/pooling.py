"""Pooling that Keras does not have."""

from __future__ import annotations

import functools
import itertools

import keras
from keras import ops

from keras_convnets.layers.direct import Direct


class _SoftPooling(Direct, keras.layers.Layer):
    axes: int

    def __init__(self, pool_size: int = 2, strides: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.pool_size = pool_size
        self.strides = strides or pool_size

    def call(self, x):
        sizes = [self._outputs(size) for size in ops.shape(x)[1:-1]]
        views = []
        for place in itertools.product(range(self.pool_size), repeat=self.axes):
            reach = [
                slice(first, first + (size - 1) * self.strides + 1, self.strides)
                for first, size in zip(place, sizes)
            ]
            views.append(x[(slice(None), *reach)])
        # View by view: stacking them takes JAX up to 28 times longer than this sum.
        logits = [ops.cast(view, "float32") for view in views]
        most = ops.stop_gradient(functools.reduce(ops.maximum, logits))
        weights = [ops.exp(view - most) for view in logits]
        total = sum(weights)
        return sum(ops.cast(w / total, x.dtype) * view for w, view in zip(weights, views))

    def compute_output_shape(self, input_shape):
        if len(input_shape) != self.axes + 2:
            raise ValueError(
                f"{type(self).__name__}: the input must have {self.axes + 2} axes, batch first and "
                f"channels last. Received: {tuple(input_shape)}"
            )
        batch, *sizes, channels = input_shape
        if any(size is not None and size < self.pool_size for size in sizes):
            raise ValueError(
                f"{type(self).__name__}: the input must be at least as large as "
                f"pool_size={self.pool_size}. Received: {tuple(input_shape)}"
            )
        return (batch, *(size and self._outputs(size) for size in sizes), channels)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)

    def _outputs(self, size):
        return (size - self.pool_size) // self.strides + 1


@keras.saving.register_keras_serializable("keras_convnets")
class SoftPooling2D(_SoftPooling):
    """sum of exp(x) * x over the sum of exp(x), of each window and channel: a soft maximum.

    Stergiou et al. 2021 (https://arxiv.org/abs/2101.00440), equations 1 and 2. Input:
    (batch, height, width, channels). Output: (batch, floor((height - pool_size) / strides) + 1,
    and likewise of the width, channels): nothing is padded.

    The weights are a softmax of float32 numbers, from which the window's maximum is taken, so that
    no value is too large.

    Args:
        pool_size: side of the window.
        strides: in all directions; default: `pool_size`.

    Raises:
        ValueError: for an input of another rank or smaller than the window.
    """

    axes = 2


@keras.saving.register_keras_serializable("keras_convnets")
class SoftPooling1D(_SoftPooling):
    """`SoftPooling2D` along one axis. Input: (batch, length, channels)."""

    axes = 1


@keras.saving.register_keras_serializable("keras_convnets")
class SoftPooling3D(_SoftPooling):
    """`SoftPooling2D` along three axes. Input: (batch, depth, height, width, channels)."""

    axes = 3
