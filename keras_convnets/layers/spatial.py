"""Convolutions that treat resolution and border in their own way."""

from __future__ import annotations

import math

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.computed import ComputedConv2D
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import Conv2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL, FanOutNormal
from keras_convnets.ops import _geometry as geometry


@keras.saving.register_keras_serializable("keras_convnets")
class SpaceToDepth2D(Direct, keras.layers.Layer):
    """Every `scale`-th pixel, from each of the scale * scale first ones, side by side as channels.

    Input: (batch, height, width, channels), multiples of `scale`. Output: (batch, height / scale,
    width / scale, channels * scale**2): all rows of the first column, then those of the next.
    """

    def __init__(self, scale: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        s = range(self.scale)
        parts = [x[:, row :: self.scale, column :: self.scale] for column in s for row in s]
        return ops.concatenate(parts, axis=-1)

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        if any(size is not None and size % self.scale for size in sizes):
            raise ValueError(
                f"SpaceToDepth2D: height and width must be multiples of scale={self.scale}: pad or "
                f"resize first. Received: {tuple(input_shape)}"
            )
        return (batch, *(size and size // self.scale for size in sizes), channels * self.scale**2)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)


@keras.saving.register_keras_serializable("keras_convnets")
class SPDConv2D(Block):
    """Downsampling that drops no pixel: space to depth, then a convolution of stride 1.

    Sunkara and Luo 2022 (https://arxiv.org/abs/2208.03641, section 3). Input: (batch, height,
    width, channels), multiples of `scale`. Output: (batch, height / scale, width / scale, filters).

    Args:
        filters: output channels.
        kernel_size: int or (height, width).
        scale: by how much both sides shrink.
        use_bias: whether to add a bias per filter.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        scale: int = 2,
        use_bias: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.rearrange = SpaceToDepth2D(scale)
        self.conv = Conv2D(
            filters,
            kernel_size,
            padding="same",
            use_bias=use_bias,
            kernel_initializer=FAN_OUT_NORMAL,
        )

    def call(self, x):
        return self.conv(self.rearrange(x))


@keras.saving.register_keras_serializable("keras_convnets")
class PartialPadConv2D(ComputedConv2D):
    """Convolution whose sums are divided, at the border, by the share of taps inside of the map.

    Liu et al. 2018 (partial convolution based padding, https://arxiv.org/abs/1811.11718, equations
    1 to 3): the padding then stands for nothing rather than for zeros. Input: (batch, height,
    width, channels). Output: (batch, out_height, out_width, filters).

    Args:
        filters: output channels.
        kernel_size: int or (height, width).
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        groups: of the convolution; equal to `filters` and the channels, it is depthwise.
        use_bias: whether to add a bias per filter.

    Raises:
        ValueError: for sizes that are none, or groups that do not divide the channels.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        groups: int = 1,
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(filters, kernel_size, strides, padding, groups, use_bias, **kwargs)

    def add_kernel(self, channels):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels // self.groups, self.filters),
            initializer=FanOutNormal(self.groups),
        )

    def dense_kernel(self):
        return self.kernel

    def convolved(self, x):
        y = super().convolved(x)
        zeros = geometry.zeros_around(
            ops.shape(x)[1:3], self.kernel_size, self.strides, self.padding, (1, 1)
        )
        rows, columns = (
            self._taps_inside(a, ops.shape(x)[1 + a], ops.shape(y)[1 + a], zeros[a][0])
            for a in (0, 1)
        )
        share = ops.reshape(rows, (-1, 1, 1)) * ops.reshape(columns, (-1, 1))
        return y * ops.cast(math.prod(self.kernel_size) / share, y.dtype)

    def _taps_inside(self, axis, size, outputs, before):
        first = ops.arange(outputs, dtype="int32") * self.strides[axis] - before
        inside = ops.minimum(first + self.kernel_size[axis], size) - ops.maximum(first, 0)
        return ops.cast(ops.maximum(inside, 1), "float32")  # where there is none, the sum is 0
