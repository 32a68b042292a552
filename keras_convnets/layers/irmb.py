"""What the inverted residual mobile blocks of EMO are made of."""

from __future__ import annotations

import keras

from keras_convnets.layers.conv import DepthwiseNormAct, batch_norm
from keras_convnets.layers.fast import Conv2D, LayerNormalization
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM, TORCH_UNIFORM

EPSILON = 1e-6


def pre_norm(kind: str, name: str | None = None) -> keras.layers.Layer:
    """The normalisation before a block: `"batch"` or `"layer"`, over channels."""
    if kind not in ("batch", "layer"):
        raise ValueError(f"norm={kind!r} must be 'batch' or 'layer'.")
    if kind == "layer":
        return LayerNormalization(epsilon=EPSILON, name=name)
    return batch_norm(EPSILON, name=name)


def pointwise(filters: int, use_bias: bool = True, name: str | None = None) -> Conv2D:
    """A 1x1 convolution."""
    return Conv2D(filters, 1, use_bias=use_bias, kernel_initializer=TORCH_UNIFORM, name=name)


def local_convolution(
    kernel_size: int, strides: int = 1, name: str | None = None
) -> DepthwiseNormAct:
    """A depthwise convolution with BatchNorm and SiLU."""
    block = DepthwiseNormAct(kernel_size, strides, "silu", epsilon=EPSILON, name=name)
    # One channel has kernel_size^2 inputs, as many as outputs.
    block.conv.depthwise_initializer = keras.initializers.get(FAN_OUT_UNIFORM)
    return block
