"""The blocks of residual networks, with attention at the end of the branch or without."""

from __future__ import annotations

import keras

from keras_convnets.layers.block import Block
from keras_convnets.layers.channel_attention import EfficientChannelAttention
from keras_convnets.layers.context_attention import CBAM, EfficientLocalAttention, GatherExcite
from keras_convnets.layers.conv import ConvNormAct
from keras_convnets.layers.fast import Activation
from keras_convnets.layers.global_context import GlobalContext
from keras_convnets.layers.initializers import FAN_OUT_NORMAL
from keras_convnets.layers.inverted import SqueezeExcite
from keras_convnets.layers.leaves import DropPath, make_divisible


def attend(
    name: str | None,
    channels: int,
    reduction: float = 1 / 16,
    kernel_initializer: str = FAN_OUT_NORMAL,
) -> keras.layers.Layer | None:
    """The attention of a name, over a map of so many channels; `None` for `None`.

    Args:
        name: `"se"`, `"eca"`, `"eca_"` and the size of its kernel, `"gc"`, `"cbam"`, `"ela_"` and a
            variant of `EfficientLocalAttention`, or `"ge_"` and a form of `GatherExcite`.
        channels: of the map.
        reduction, kernel_initializer: of squeeze-and-excitation; the first is the share of the
            channels that it has inside, in multiples of 8.

    Raises:
        ValueError: for another name.
    """
    if name is None:
        return None
    kind, _, form = name.partition("_")
    if kind == "se":
        reduced = make_divisible(channels * reduction, keep=0)
        return SqueezeExcite(channels, reduced, kernel_initializer=kernel_initializer)
    if kind == "eca":
        return EfficientChannelAttention(channels, int(form) if form else None)
    if kind == "gc":
        return GlobalContext(channels)
    if kind == "cbam":
        return CBAM(channels)
    if kind == "ela":
        return EfficientLocalAttention(channels, form.upper())
    if kind == "ge":
        return GatherExcite(channels, form, extent=0 if form == "minus" else 8)
    raise ValueError(
        f"attend: name={name!r} must be None, 'se', 'eca', 'gc' or 'cbam', or begin with 'eca_', "
        "'ela_' or 'ge_'."
    )


def projections(width: int, strides: int, shortcut: str | None) -> list[keras.layers.Layer]:
    """The layers of a shortcut: none for `None`; a 1x1 convolution for "projected", with average
    pooling before it instead of a stride for "pooled"; and for "convolved" 3x3 at a stride."""
    if shortcut is None:
        return []
    if shortcut not in ("projected", "pooled", "convolved"):
        raise ValueError(
            f"shortcut={shortcut!r} must be None, 'projected', 'pooled' or 'convolved'."
        )
    if shortcut == "pooled":
        pool = keras.layers.AveragePooling2D(2, padding="same")
        return [pool if strides > 1 else keras.layers.Identity(), ConvNormAct(width)]
    kernel_size = 3 if shortcut == "convolved" and strides > 1 else 1
    return [ConvNormAct(width, kernel_size, strides)]


def strided_conv(width, strides, pooled, groups=1):
    """3x3 convolution, with average pooling after it instead of a stride if `pooled`."""
    pool = pooled and strides > 1
    conv = ConvNormAct(
        width,
        3,
        1 if pool else strides,
        "relu",
        groups=groups,
        kernel_initializer=FAN_OUT_NORMAL,  # its fan counts the outputs of all groups
    )
    return conv, keras.layers.AveragePooling2D(strides) if pool else None


class _Residual(Block):
    """relu(shortcut(x) + attention(F(x))): He et al. 2016 (ResNet), figure 5."""

    def __init__(self, width, strides, shortcut, attention, drop_path, **kwargs):
        super().__init__(**kwargs)
        self.attention = attend(attention, width)
        self.drop_path = DropPath(drop_path)
        self.projections = projections(width, strides, shortcut)
        self.activation = Activation("relu")

    def call(self, x):
        y = self.branch(x)
        y = self.attention(y) if self.attention else y
        for layer in self.projections:
            x = layer(x)
        return self.activation(x + self.drop_path(y))


@keras.saving.register_keras_serializable("keras_convnets")
class BasicBlock(_Residual):
    """relu(shortcut(x) + attention(F(x))) with two 3x3 convolutions.

    He et al. 2016 (ResNet), figure 5 left. Input: (batch, height, width, channels). Output: (batch,
    ceil(height / strides), ceil(width / strides), width).

    Args:
        width: output channels.
        strides: of the first convolution.
        shortcut: `"projected"`, a 1x1 convolution where the shape changes (option B); `"pooled"`,
            with average pooling before it instead of a stride; `"convolved"`, 3x3 at a stride; or
            `None` where the shape stays.
        attention: a name that `attend` knows.
        pooled: whether average pooling follows the first convolution instead of its stride.
        drop_path: rate of stochastic depth.

    Raises:
        ValueError: for another shortcut or attention.
    """

    def __init__(
        self,
        width: int,
        strides: int = 1,
        shortcut: str | None = None,
        attention: str | None = None,
        pooled: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(width, strides, shortcut, attention, drop_path, **kwargs)
        self.conv1, self.pool = strided_conv(width, strides, pooled)
        self.conv2 = ConvNormAct(width, 3, zero_init=True)

    def branch(self, x):
        x = self.conv1(x)
        return self.conv2(self.pool(x) if self.pool else x)


@keras.saving.register_keras_serializable("keras_convnets")
class Bottleneck(_Residual):
    """relu(shortcut(x) + attention(F(x))) with 1x1, 3x3 and 1x1 convolutions.

    He et al. 2016 (ResNet), figure 5 right. Shapes and arguments as in `BasicBlock`, but for:

    Args:
        first_width: channels of the first 1x1 convolution.
        inner_width: channels of the 3x3 convolution, which has the stride.
        groups: of the 3x3 convolution.
    """

    def __init__(
        self,
        width: int,
        first_width: int,
        inner_width: int,
        groups: int = 1,
        strides: int = 1,
        shortcut: str | None = None,
        attention: str | None = None,
        pooled: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(width, strides, shortcut, attention, drop_path, **kwargs)
        self.conv1 = ConvNormAct(first_width, activation="relu")
        self.conv2, self.pool = strided_conv(inner_width, strides, pooled, groups)
        self.conv3 = ConvNormAct(width, zero_init=True)

    def branch(self, x):
        x = self.conv2(self.conv1(x))
        return self.conv3(self.pool(x) if self.pool else x)
