"""Convolution, normalisation and activation in one block."""

from __future__ import annotations

import keras
import numpy as np

from keras_convnets.layers.block import Block
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.evo_norm import EvoNorm2D
from keras_convnets.layers.fast import Activation, BatchNormalization, Conv2D, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL, FanOutNormal


def convolution(
    filters: int,
    kernel_size: int | tuple[int, int] = 1,
    strides: int = 1,
    padding: str = "valid",
    groups: int = 1,
    kernel_initializer: str | None = None,
    name: str | None = None,
) -> Conv2D:
    """A convolution without bias, for a BatchNorm before or after it.

    `kernel_initializer`: default: `FanOutNormal` with the outputs of one group; the rest as in
    `keras.layers.Conv2D`.
    """
    return Conv2D(
        filters,
        kernel_size,
        strides,
        padding,
        groups=groups,
        use_bias=False,
        kernel_initializer=kernel_initializer or FanOutNormal(groups),
        name=name,
    )


def batch_norm(
    epsilon: float = 1e-5, zero_init: bool = False, name: str | None = None
) -> keras.layers.BatchNormalization:
    """A BatchNorm with PyTorch's momentum and epsilon. `zero_init`: start with gamma = 0."""
    return BatchNormalization(
        momentum=0.9,
        epsilon=epsilon,
        gamma_initializer="zeros" if zero_init else "ones",
        name=name,
    )


@keras.saving.register_keras_serializable("keras_convnets")
class ConvNormAct(Block):
    """Convolution, normalisation and activation; no bias.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), filters).

    Args:
        filters: output channels.
        kernel_size: odd side of the kernel, or height and width.
        strides: stride in both directions.
        activation: name of a Keras activation, or `None`.
        zero_init: start with gamma = 0, so that the branch that this block ends adds nothing at
            first (Goyal et al. 2017, section 5.1).
        padding: `"symmetric"`, `kernel_size // 2` on each side, as PyTorch pads; or `"same"`, as
            TensorFlow pads: (0, 1) for a 3x3 kernel at stride 2 and an even size; or `"valid"`,
            nowhere, and the output is smaller.
        epsilon: of the BatchNorm.
        groups: of the convolution.
        kernel_initializer: default: `FanOutNormal` with the outputs of one group.
        norm: `"batch"`; `"group"`, GroupNorm of 16 channels each; or `"evo"`, `EvoNorm2D`, which
            with any `activation` is gated instead.

    Raises:
        ValueError: for another `norm`, and for filters that are no multiple of 16 with "group".
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 1,
        strides: int = 1,
        activation: str | None = None,
        zero_init: bool = False,
        padding: str = "symmetric",
        epsilon: float = 1e-5,
        groups: int = 1,
        kernel_initializer: str | None = None,
        norm: str = "batch",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in ("batch", "group", "evo"):
            raise ValueError(f"ConvNormAct: norm={norm!r} must be 'batch', 'group' or 'evo'.")
        if norm == "group" and filters % 16:
            raise ValueError(
                f"ConvNormAct: filters={filters} must be a multiple of 16 with norm='group'."
            )
        zeros = [side // 2 for side in np.broadcast_to(kernel_size, 2).tolist()]
        padded = strides > 1 and any(zeros) and padding == "symmetric"
        self.pad = ZeroPadding2D(zeros) if padded else None
        padding = "valid" if padded or padding == "valid" else "same"
        self.conv = convolution(filters, kernel_size, strides, padding, groups, kernel_initializer)
        if norm == "evo":
            self.norm = EvoNorm2D(gated=activation is not None, zero_init=zero_init)
            activation = None
        elif norm == "group":
            start = "zeros" if zero_init else "ones"
            self.norm = keras.layers.GroupNormalization(
                filters // 16, epsilon=epsilon, gamma_initializer=start
            )
        else:
            self.norm = batch_norm(epsilon, zero_init)
        self.activation = Activation(activation) if activation else None

    def call(self, x):
        x = self.pad(x) if self.pad else x
        x = self.norm(self.conv(x))
        return self.activation(x) if self.activation else x


@keras.saving.register_keras_serializable("keras_convnets")
class DepthwiseNormAct(Block):
    """Depthwise convolution, BatchNorm and activation; no bias. Shapes and arguments as in
    `ConvNormAct`."""

    def __init__(
        self,
        kernel_size: int = 3,
        strides: int = 1,
        activation: str | None = None,
        padding: str = "symmetric",
        epsilon: float = 1e-5,
        kernel_initializer: str = FAN_OUT_NORMAL,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv = DepthwiseConv2D(
            kernel_size,
            strides,
            padding=kernel_size // 2 if padding == "symmetric" else padding,
            use_bias=False,
            depthwise_initializer=kernel_initializer,
        )
        self.norm = batch_norm(epsilon)
        self.activation = Activation(activation) if activation else None

    def call(self, x):
        x = self.norm(self.conv(x))
        return self.activation(x) if self.activation else x
