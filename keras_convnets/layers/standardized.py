"""Convolutions whose kernels are standardised, for networks without normalisation of the maps."""

from __future__ import annotations

import math

import keras
from keras import ops

from keras_convnets.layers.fast import Conv2D
from keras_convnets.layers.initializers import FAN_IN_UNIT_NORMAL


@keras.saving.register_keras_serializable("keras_convnets")
class ScaledWSConv2D(keras.layers.Conv2D):
    """Convolution with scaled weight standardisation and a bias.

    Brock et al. 2021 (https://arxiv.org/abs/2101.08692), equation 1: the kernel of each output is
    (kernel - mean) / sqrt(variance + epsilon), times its learned `gain`, times `gamma / sqrt(n)`,
    with n the numbers in it; so maps keep their variance if `gamma` undoes that of the activation
    before. Input: (batch, height, width, channels). Output: as of `keras.layers.Conv2D`.

    Args:
        filters, kernel_size, strides, padding, groups: as in `keras.layers.Conv2D`.
        gamma: 1 / standard deviation of the activation of a standard normal number.
        gain_initializer: of the gain of each output.
        epsilon: added to the variance, of kernels before scaling.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        padding: str = "same",
        groups: int = 1,
        gamma: float = 1.0,
        gain_initializer: str = "ones",
        epsilon: float = 1e-5,
        **kwargs,
    ):
        kwargs.setdefault("kernel_initializer", FAN_IN_UNIT_NORMAL)
        super().__init__(filters, kernel_size, strides, padding, groups=groups, **kwargs)
        self.gamma = gamma
        self.gain_initializer = keras.initializers.get(gain_initializer)
        self.epsilon = epsilon

    def build(self, input_shape):
        super().build(input_shape)
        self.gain = self.add_weight(
            shape=(1, 1, 1, self.filters), initializer=self.gain_initializer, name="gain"
        )

    # Conv2D's own know of kernel and bias only.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def standardized_kernel(self):
        """The kernel that the convolution has, in float32."""
        kernel = ops.cast(self.kernel, "float32")
        mean, variance = ops.moments(kernel, axes=(0, 1, 2), keepdims=True)
        scale = self.gamma / math.sqrt(math.prod(kernel.shape[:-1]))
        gain = ops.cast(self.gain, "float32") * scale
        return (kernel - mean) * ops.rsqrt(variance + self.epsilon) * gain

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, ops.cast(self.standardized_kernel(), kernel.dtype))

    def fused(self) -> Conv2D:
        """A plain convolution with the present kernel."""
        layer = Conv2D(
            self.filters,
            self.kernel_size,
            self.strides,
            self.padding,
            groups=self.groups,
            dtype=self.dtype_policy,
        )
        layer.build((None, None, None, self.kernel.shape[-2] * self.groups))
        layer.kernel.assign(self.standardized_kernel())
        layer.bias.assign(self.bias)
        return layer

    def get_config(self):
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "gain_initializer": keras.initializers.serialize(self.gain_initializer),
            "epsilon": self.epsilon,
        }
