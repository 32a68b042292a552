"""Residual blocks without normalisation, whose kernels are standardised instead."""

from __future__ import annotations

import keras

from keras_convnets.layers.block import Block
from keras_convnets.layers.fast import Activation, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_IN_UNIT_NORMAL
from keras_convnets.layers.leaves import DropPath, SkipInit
from keras_convnets.layers.residual import attend
from keras_convnets.layers.standardized import ScaledWSConv2D

# 1 / standard deviation of each activation of a standard normal number.
GAINS = {"gelu": 1.7015043497085571, "relu": 1.7139588594436646, "silu": 1.7881293296813965}
ALPHA = 0.2  # of each residual branch


@keras.saving.register_keras_serializable("keras_convnets")
class NormFreeConv(Block):
    """`ScaledWSConv2D` with PyTorch's padding, or with `padding="same"`, as of `ConvNormAct`."""

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        groups: int = 1,
        padding: str = "symmetric",
        gamma: float = 1.0,
        gain_initializer: str = "ones",
        **kwargs,
    ):
        super().__init__(**kwargs)
        padded = strides > 1 and padding == "symmetric"
        self.pad = ZeroPadding2D(kernel_size // 2) if padded else None
        self.ws = ScaledWSConv2D(
            filters,
            kernel_size,
            strides,
            "valid" if padded else "same",
            groups,
            gamma,
            gain_initializer,
        )

    def call(self, x):
        return self.ws(self.pad(x) if self.pad else x)


@keras.saving.register_keras_serializable("keras_convnets")
class NormFreeBlock(Block):
    """shortcut + alpha * F(act(x) * beta), Brock et al. 2021 (2102.06171), figure 5.

    beta is 1 / the standard deviation that x is expected to have. F is 1x1, activation, one or two
    grouped 3x3, 1x1; attention, which halves its input, counts twice. Input: (batch, height, width,
    channels). Output: (batch, ceil(height / strides), ceil(width / strides), width).

    Args:
        width: output channels.
        inner_width: channels of the 3x3 convolutions.
        groups: of the 3x3 convolutions.
        strides: of the first 3x3 convolution.
        beta: as above.
        activation: `"gelu"`, `"relu"` or `"silu"`.
        attention, reduction: `"se"`, with the share of its reduced channels, `"eca"` or `None`.
        attention_inside: before the last 1x1 convolution instead of after it.
        project: whether the shortcut is pooled, if strided, and convolved.
        convolutions: 3x3 convolutions.
        padding: as in `NormFreeConv`.
        gain_in_activation: the activation's gain follows it, instead of being in the convolution.
        skip_init: whether F starts at zero by a factor of its own.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        inner_width: int,
        groups: int,
        strides: int,
        beta: float,
        activation: str,
        attention: str | None,
        reduction: float,
        attention_inside: bool,
        project: bool,
        convolutions: int = 1,
        padding: str = "symmetric",
        gain_in_activation: bool = False,
        skip_init: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.beta = beta
        self.factor, gamma = gains(activation, gain_in_activation)

        def conv(filters, *args, gain="ones"):
            return NormFreeConv(filters, *args, padding=padding, gamma=gamma, gain_initializer=gain)

        self.pool = keras.layers.AveragePooling2D(2, padding="same") if strides > 1 else None
        self.shortcut = conv(width) if project else None
        self.act1 = Activation(activation)
        self.conv1 = conv(inner_width)
        self.act2 = Activation(activation)
        self.conv2 = conv(inner_width, 3, strides, groups)
        second = convolutions == 2
        self.act2b = Activation(activation) if second else None
        self.conv2b = conv(inner_width, 3, 1, groups) if second else None
        name = attention if attention_inside else None
        self.attn = attend(name, inner_width, reduction, FAN_IN_UNIT_NORMAL)
        self.act3 = Activation(activation)
        self.conv3 = conv(width, gain="ones" if skip_init else "zeros")
        name = None if attention_inside else attention
        self.attn_last = attend(name, width, reduction, FAN_IN_UNIT_NORMAL)
        self.skip_init = SkipInit() if skip_init else None
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = times(self.act1(x), self.factor * self.beta)
        if self.shortcut:
            x = self.shortcut(self.pool(y) if self.pool else y)
        y = times(self.act2(self.conv1(y)), self.factor)
        y = self.conv2(y)
        if self.conv2b:
            y = self.conv2b(times(self.act2b(y), self.factor))
        if self.attn:
            y = 2 * self.attn(y)
        y = self.conv3(times(self.act3(y), self.factor))
        if self.attn_last:
            y = 2 * self.attn_last(y)
        y = self.drop_path(y)
        y = self.skip_init(y) if self.skip_init else y
        return x + ALPHA * y


def gains(activation, in_activation):
    """Factor after an activation, and gamma of the convolution after that."""
    gain = GAINS[activation]
    return (gain, 1.0) if in_activation else (1.0, gain)


def times(x, factor):
    return x if factor == 1 else x * factor
