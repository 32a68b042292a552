"""Convolution where every example of the batch has a kernel of its own.

    y[n, p, q, f] = sum over i, j, c of
        x[n, p*s + i*d - top, q*s + j*d - left, c] kernel[n, i, j, c, f]

with zeros outside of x. It is one batched product of the taps side by side with the kernels; where
every channel is a group, one depthwise convolution of an image that has the whole batch as its
channels. Convolutions with the batch as groups are 5 to 30 times slower to train on CPUs, for want
of a fast gradient in XLA and TensorFlow, and mixtures of the outputs of all experts (CondConv)
2 to 5 times.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.ops._depthwise_routes import every
from keras_convnets.ops._geometry import (
    check_axes,
    output_shape,
    pair,
    promote,
    resolve_padding,
    zeros_around,
)
from keras_convnets.ops.depthwise import depthwise_conv2d


def per_example_conv2d(x, kernel, strides=1, padding="same", dilation_rate=1):
    """Convolves each example with its own kernel.

    Args:
        x: `(batch, height, width, channels)`, float.
        kernel: `(batch, kernel_height, kernel_width, channels / groups, filters)`, float.
        strides, padding, dilation_rate: as in `depthwise_conv2d`.

    Returns:
        `(batch, out_height, out_width, filters)`, of the type `x` and `kernel` promote to.

    Raises:
        ValueError: for shapes that do not fit each other, a non-float type, or sizes that are none.
    """
    operation = PerExampleConv2DOperation(strides, padding, dilation_rate)
    if isinstance(x, keras.KerasTensor) or isinstance(kernel, keras.KerasTensor):
        return operation.symbolic_call(x, kernel)
    return operation.call(x, kernel)


@keras.saving.register_keras_serializable(package="keras_convnets")
class PerExampleConv2DOperation(keras.Operation):
    """`per_example_conv2d` in a symbolic graph; same arguments, called on `(x, kernel)`."""

    def __init__(self, strides=1, padding="same", dilation_rate=1, name=None):
        super().__init__(name=name)
        self.strides = pair(strides, "strides", 1)
        self.padding = resolve_padding(padding)
        self.dilation_rate = pair(dilation_rate, "dilation_rate", 1)

    def compute_output_spec(self, x, kernel):
        axes = "(batch, kernel_height, kernel_width, channels / groups, filters)"
        check_axes("kernel", kernel.shape, axes, 4)
        check_axes("x", x.shape, "(batch, height, width, channels)", 1)
        if None not in (x.shape[0], kernel.shape[0]) and x.shape[0] != kernel.shape[0]:
            raise ValueError(
                f"`kernel` must be {axes} with the batch of `x`. Received: "
                f"kernel.shape={tuple(kernel.shape)}, x.shape={tuple(x.shape)}"
            )
        _, height, width, members, filters = kernel.shape
        channels = x.shape[-1]
        shape = output_shape(
            x.shape, (height, width, channels, 1), self.strides, self.padding, self.dilation_rate
        )
        if channels % members or filters % (channels // members):
            raise ValueError(
                "A number of groups must divide the channels of `x` and the filters of `kernel`, "
                "(batch, kernel_height, kernel_width, channels / groups, filters). Received: "
                f"kernel.shape={tuple(kernel.shape)}, x.shape={tuple(x.shape)}"
            )
        return keras.KerasTensor((*shape[:3], filters), promote(x=x, kernel=kernel))

    def call(self, x, kernel):
        x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
        spec = self.compute_output_spec(x, kernel)
        channels, filters = x.shape[3], spec.shape[3]
        compute = self._products
        if kernel.shape[3] == 1 and channels == filters:
            compute = self._depthwise
        return ops.cast(compute(ops.cast(x, spec.dtype), ops.cast(kernel, spec.dtype)), spec.dtype)

    def _depthwise(self, x, kernel):
        batch, height, width, channels = ops.shape(x)
        image = ops.transpose(x, (1, 2, 0, 3))
        image = ops.reshape(image, (1, height, width, batch * channels))
        taps = ops.transpose(kernel[..., 0, :], (1, 2, 0, 3))
        taps = ops.reshape(taps, (*kernel.shape[1:3], batch * channels, 1))
        y = depthwise_conv2d(image, taps, self.strides, self.padding, self.dilation_rate)
        y = ops.reshape(y, (*ops.shape(y)[1:3], batch, channels))
        return ops.transpose(y, (2, 0, 1, 3))

    def _products(self, x, kernel):
        _, kh, kw, members, filters = kernel.shape
        groups = x.shape[3] // members
        columns = self._columns(x, kh, kw)
        batch, height, width = ops.shape(columns)[:3]
        taps = kh * kw
        columns = ops.reshape(columns, (batch, height * width, taps, groups, members))
        columns = ops.transpose(columns, (0, 3, 1, 2, 4))
        columns = ops.reshape(columns, (batch, groups, height * width, taps * members))
        kernel = ops.reshape(kernel, (batch, taps * members, groups, filters // groups))
        y = ops.matmul(columns, ops.transpose(kernel, (0, 2, 1, 3)))
        return ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (batch, height, width, filters))

    def _columns(self, x, kh, kw):
        """What each output's taps read, side by side: `(batch, out_height, out_width, ...)`."""
        sizes = ops.shape(x)[1:3]
        zeros = zeros_around(sizes, (kh, kw), self.strides, self.padding, self.dilation_rate)
        x = ops.pad(x, [(0, 0), *zeros, (0, 0)])
        outputs = [
            (size + sum(around) - (side - 1) * rate - 1) // stride + 1
            for size, around, side, rate, stride in zip(
                sizes, zeros, (kh, kw), self.dilation_rate, self.strides
            )
        ]
        views = []
        for i in range(kh):
            rows = every(i * self.dilation_rate[0], outputs[0], self.strides[0])
            for j in range(kw):
                columns = every(j * self.dilation_rate[1], outputs[1], self.strides[1])
                views.append(x[:, rows, columns])
        return ops.concatenate(views, -1)
