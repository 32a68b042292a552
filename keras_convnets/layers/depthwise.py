"""Depthwise convolution layer."""

from __future__ import annotations

import numpy as np
from keras import constraints, initializers, layers, ops, regularizers, saving

from keras_convnets.layers.direct import Direct
from keras_convnets.ops import _geometry as geometry
from keras_convnets.ops import depthwise_conv2d


@saving.register_keras_serializable(package="keras_convnets")
class DepthwiseConv2D(Direct, layers.Layer):
    """Convolves each channel with its own kernel: fast on every backend, padded as you say.

    Input: `(batch, height, width, channels)`. Output: `(batch, out_height, out_width, channels)`.

    Args:
        kernel_size: int or `(height, width)`.
        strides: int or `(vertical, horizontal)`.
        padding: `"same"` (output size is ceil(size / stride); the odd zero goes to the bottom and
            right), `"valid"` (none), or an int or `(vertical, horizontal)`: that many zeros on both
            sides, PyTorch's convention.
        dilation_rate: int or `(vertical, horizontal)`.
        use_bias: whether to add a bias per channel.
        depthwise_initializer, bias_initializer: of `kernel`, `(height, width, channels, 1)`, and of
            `bias`, `(channels,)`.
        depthwise_regularizer, bias_regularizer, depthwise_constraint, bias_constraint: as in
            `keras.layers.DepthwiseConv2D`.

    Raises:
        ValueError: for sizes that are none, an input that is not 4-D or whose channels are unknown,
            and a kernel larger than the padded image.
    """

    def __init__(
        self,
        kernel_size,
        strides=1,
        padding="same",
        dilation_rate=1,
        use_bias=True,
        depthwise_initializer="glorot_uniform",
        bias_initializer="zeros",
        depthwise_regularizer=None,
        bias_regularizer=None,
        depthwise_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_size = geometry.pair(kernel_size, "kernel_size", 1)
        self.strides = geometry.pair(strides, "strides", 1)
        self.padding = geometry.resolve_padding(padding)
        self.dilation_rate = geometry.pair(dilation_rate, "dilation_rate", 1)
        self.use_bias = use_bias
        self.depthwise_initializer = initializers.get(depthwise_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.depthwise_regularizer = regularizers.get(depthwise_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.depthwise_constraint = constraints.get(depthwise_constraint)
        self.bias_constraint = constraints.get(bias_constraint)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        channels = input_shape[-1]
        self.input_spec = layers.InputSpec(ndim=4, axes={-1: channels})
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels, 1),
            initializer=self.depthwise_initializer,
            regularizer=self.depthwise_regularizer,
            constraint=self.depthwise_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(channels,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, inputs):
        outputs = depthwise_conv2d(
            inputs, self.kernel, self.strides, self.padding, self.dilation_rate
        )
        return outputs if self.bias is None else ops.add(outputs, self.bias)

    def compute_output_shape(self, input_shape):
        if len(input_shape) == 4 and input_shape[-1] is None:
            raise ValueError(
                "The channels of the input must be known: give the last axis of `keras.Input` a "
                f"size. Received: input_shape={tuple(input_shape)}"
            )
        kernel_shape = (*self.kernel_size, input_shape[-1], 1)
        return geometry.output_shape(
            input_shape, kernel_shape, self.strides, self.padding, self.dilation_rate
        )

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "use_bias": self.use_bias,
            "depthwise_initializer": initializers.serialize(self.depthwise_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
            "depthwise_regularizer": regularizers.serialize(self.depthwise_regularizer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "depthwise_constraint": constraints.serialize(self.depthwise_constraint),
            "bias_constraint": constraints.serialize(self.bias_constraint),
        }


@saving.register_keras_serializable(package="keras_convnets")
class BlurPool2D(Direct, layers.Layer):
    """Every second pixel of a map blurred with (1, 2, 1) / 4 in both directions (Zhang 2019, 3.2).

    Input: `(batch, height, width, channels)`. Output: `(batch, ceil(height / 2), ceil(width / 2),
    channels)`, with a `padding` of 0 those of a map that is smaller by 2.

    Args:
        padding: zeros around the map.
    """

    kernel_size = (3, 3)

    def __init__(self, padding: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.padding = padding

    def call(self, inputs):
        binomial = np.outer((1, 2, 1), (1, 2, 1)) / 16
        kernel = np.tile(binomial[:, :, None, None], (1, 1, inputs.shape[-1], 1))
        kernel = ops.convert_to_tensor(kernel, inputs.dtype)
        return depthwise_conv2d(inputs, kernel, strides=2, padding=self.padding)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        halves = [size and (size + 2 * self.padding - 1) // 2 for size in (height, width)]
        return (batch, *halves, channels)
