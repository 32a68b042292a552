"""Convolution layers whose kernel is computed from other variables."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import Conv2D, ZeroPadding2D
from keras_convnets.ops import _geometry as geometry
from keras_convnets.ops import depthwise_conv2d


class ComputedConv2D(Direct, keras.layers.Layer):
    """The base: a subclass makes its variables in `add_kernel(channels)` and computes from them
    `dense_kernel()`, (height, width, channels / groups, filters).

    Input: (batch, height, width, channels). Output: (batch, out_height, out_width, filters).

    Args:
        filters: output channels.
        kernel_size: int or (height, width).
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        groups: of the convolution.
        use_bias: whether to add a bias per filter.
    """

    def __init__(self, filters, kernel_size, strides, padding, groups, use_bias, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.groups, self.use_bias = filters, groups, use_bias
        self.kernel_size = geometry.pair(kernel_size, "kernel_size", 1)
        self.strides = geometry.pair(strides, "strides", 1)
        self.padding = geometry.resolve_padding(padding)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        self.channels = input_shape[-1]
        self.add_kernel(self.channels)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def convolved(self, x):
        """The output without the bias."""
        kernel = ops.cast(self.dense_kernel(), x.dtype)
        return convolve(x, kernel, self.strides, self.padding)

    def call(self, x):
        y = self.convolved(x)
        return y if self.bias is None else ops.add(y, self.bias)

    def compute_output_shape(self, input_shape):
        geometry.check_groups(type(self).__name__, input_shape, self.filters, self.groups)
        kernel_shape = (*self.kernel_size, input_shape[-1], 1)
        shape = geometry.output_shape(input_shape, kernel_shape, self.strides, self.padding, (1, 1))
        return (*shape[:3], self.filters)


def convolve(x, kernel, strides, padding):
    """Convolution with a kernel (height, width, channels / groups, filters)."""
    if kernel.shape[2] == 1 and kernel.shape[3] == x.shape[3]:
        return depthwise_conv2d(x, ops.transpose(kernel, (0, 1, 3, 2)), strides, padding)
    if not isinstance(padding, str):
        x, padding = ops.pad(x, [(0, 0), *((zeros, zeros) for zeros in padding), (0, 0)]), "valid"
    return ops.conv(x, kernel, strides, padding, data_format="channels_last")


def plain_convolution(layer: ComputedConv2D) -> keras.layers.Layer:
    """A layer with the present kernel of `layer` as its weight, for `fused`."""
    kernel = layer.dense_kernel()
    sizes = (layer.kernel_size, layer.strides, layer.padding)
    options = {"use_bias": layer.use_bias, "dtype": layer.dtype_policy}
    if layer.groups == layer.channels == layer.filters:
        kernel = ops.transpose(kernel, (0, 1, 3, 2))
        plain = conv = DepthwiseConv2D(*sizes, **options)
    elif isinstance(layer.padding, str):
        plain = conv = Conv2D(layer.filters, *sizes, groups=layer.groups, **options)
    else:
        plain = ZeroPaddedConv2D(layer.filters, *sizes, groups=layer.groups, **options)
        conv = plain.conv
    plain.build((None, None, None, layer.channels))
    conv.kernel.assign(kernel)
    if layer.use_bias:
        conv.bias.assign(layer.bias)
    return plain


@keras.saving.register_keras_serializable("keras_convnets")
class ZeroPaddedConv2D(Block):
    """`keras.layers.Conv2D` after `padding`, (vertical, horizontal), zeros on both sides."""

    def __init__(self, filters, kernel_size, strides, padding, groups=1, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        self.pad = ZeroPadding2D(padding)
        self.conv = Conv2D(filters, kernel_size, strides, groups=groups, use_bias=use_bias)

    def call(self, x):
        return self.conv(self.pad(x))
