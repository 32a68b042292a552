"""Depthwise convolution: one spatial filter per channel, channels last.

    y[n, p, q, c] = sum over i, j of x[n, p*s + i*d - top, q*s + j*d - left, c] kernel[i, j, c, 0]

with zeros outside of x. `reference` is that equation in keras.ops; the routes of each backend
compute the same numbers faster and carry their own gradients.
"""

from __future__ import annotations

import importlib

import keras
from keras import ops

from keras_convnets.ops._geometry import (
    output_shape,
    pair,
    promote,
    resolve_padding,
    zeros_around,
)


def depthwise_conv2d(x, kernel, strides=1, padding="same", dilation_rate=1):
    """Convolves each channel with its own kernel.

    Args:
        x: `(batch, height, width, channels)`, float.
        kernel: `(kernel_height, kernel_width, channels, 1)`, float.
        strides: int or `(vertical, horizontal)`.
        padding: `"same"` (output size is ceil(size / stride); the odd zero goes to the bottom and
            right), `"valid"` (none), or an int or `(vertical, horizontal)`: that many zeros on both
            sides, PyTorch's convention.
        dilation_rate: int or `(vertical, horizontal)`: the distance between taps.

    Returns:
        `(batch, out_height, out_width, channels)`, of the type `x` and `kernel` promote to.

    Raises:
        ValueError: for a wrong rank, a channel count that differs, a non-float type, a stride,
            padding or dilation that is no size, or a kernel larger than the padded image.
    """
    if isinstance(x, keras.KerasTensor) or isinstance(kernel, keras.KerasTensor):
        operation = DepthwiseConv2DOperation(strides, padding, dilation_rate)
        return operation.symbolic_call(x, kernel)
    strides, dilation_rate = pair(strides, "strides", 1), pair(dilation_rate, "dilation_rate", 1)
    padding = resolve_padding(padding)
    x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
    output_shape(x.shape, kernel.shape, strides, padding, dilation_rate)
    dtype = promote(x=x, kernel=kernel)
    x, kernel = ops.cast(x, dtype), ops.cast(kernel, dtype)
    backend = importlib.import_module(f"{__package__}._depthwise_{keras.backend.backend()}")
    return backend.depthwise_conv2d(x, kernel, strides, padding, dilation_rate)


@keras.saving.register_keras_serializable(package="keras_convnets")
class DepthwiseConv2DOperation(keras.Operation):
    """`depthwise_conv2d` as a node of a symbolic graph; same arguments, called on `(x, kernel)`."""

    def __init__(self, strides=1, padding="same", dilation_rate=1, name=None):
        super().__init__(name=name)
        self.strides = pair(strides, "strides", 1)
        self.padding = resolve_padding(padding)
        self.dilation_rate = pair(dilation_rate, "dilation_rate", 1)

    def compute_output_spec(self, x, kernel):
        shape = output_shape(x.shape, kernel.shape, self.strides, self.padding, self.dilation_rate)
        return keras.KerasTensor(shape, dtype=promote(x=x, kernel=kernel))

    def call(self, x, kernel):
        return depthwise_conv2d(x, kernel, self.strides, self.padding, self.dilation_rate)


def reference(x, kernel, strides=1, padding="same", dilation_rate=1):
    """The definition: a sum over the taps of shifted images times a weight per channel."""
    strides, rates = pair(strides, "strides", 1), pair(dilation_rate, "dilation_rate", 1)
    kh, kw, _, _ = kernel.shape
    zeros = zeros_around(ops.shape(x)[1:3], (kh, kw), strides, resolve_padding(padding), rates)
    x = ops.pad(x, [(0, 0), *zeros, (0, 0)])
    height, width = ops.shape(x)[1:3]
    y = 0.0
    for i in range(kh):
        for j in range(kw):
            top, left = i * rates[0], j * rates[1]
            bottom, right = height - (kh - 1 - i) * rates[0], width - (kw - 1 - j) * rates[1]
            y += x[:, top : bottom : strides[0], left : right : strides[1]] * kernel[i, j, :, 0]
    return y
