"""The block that the mobile networks share, and the attention over channels inside it."""

from __future__ import annotations

import keras

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import ConvNormAct, DepthwiseNormAct
from keras_convnets.layers.depthwise import BlurPool2D
from keras_convnets.layers.fast import Activation, Conv2D, GlobalAveragePooling2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL
from keras_convnets.layers.leaves import DropPath, LayerScale

# What timm calls the stem and the blocks of the networks made of these: rules for their `KEYS`.
INVERTED_KEYS = [
    (r"^stem/conv", "conv_stem"),
    (r"^stem/norm", "bn1"),
    (r"^stage(\d)_block(\d+)", r"blocks.\1.\2"),
    (r"squeeze/(reduce|expand)", r"se.conv_\1"),
    (r"expand/conv", "conv_pw"),
    (r"expand/norm", "bn1"),
    (r"depthwise/conv", "conv_dw"),
    (r"depthwise/norm", "bn2"),
    (r"project/conv", "conv_pwl"),
    (r"project/norm", "bn3"),
    # The first stage does not expand, so that its convolutions are counted from one less.
    (r"(blocks\.0\.\d+)/bn2", r"\1/bn1"),
    (r"(blocks\.0\.\d+)/conv_pwl", r"\1/conv_pw"),
    (r"(blocks\.0\.\d+)/bn3", r"\1/bn2"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class SqueezeExcite(Block):
    """x * gate(expand(act(reduce(mean of x over the map)))): Hu et al. 2018, equations 2 to 4.

    Input and output: (batch, height, width, channels).

    Args:
        channels: of the input.
        reduced: channels between the two 1x1 convolutions, which have biases.
        activation: name of a Keras activation, between them.
        gate: name of a Keras activation, after them.
        kernel_initializer: of both.
    """

    def __init__(
        self,
        channels: int,
        reduced: int,
        activation: str = "relu",
        gate: str = "sigmoid",
        kernel_initializer: str = FAN_OUT_NORMAL,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.pool = GlobalAveragePooling2D(keepdims=True)
        self.reduce = Conv2D(reduced, 1, kernel_initializer=kernel_initializer)
        self.activation = Activation(activation)
        self.expand = Conv2D(channels, 1, kernel_initializer=kernel_initializer)
        self.gate = Activation(gate)

    def call(self, x):
        y = self.activation(self.reduce(self.pool(x)))
        return x * self.gate(self.expand(y))


@keras.saving.register_keras_serializable("keras_convnets")
class InvertedResidual(Block):
    """Expand with 1x1, filter with a depthwise convolution, project linearly with 1x1.

    Sandler et al. 2018 (MobileNetV2), figure 3b; with squeeze-and-excitation Howard et al. 2019
    (MobileNetV3), figure 4. Input: (batch, height, width, channels). Output:
    (batch, ceil(height / strides), ceil(width / strides), width).

    Args:
        width: output channels.
        expanded: channels of the depthwise convolution.
        kernel_size: its side.
        strides: its stride.
        activation: after the expansion and after the depthwise convolution.
        expand: whether there is a 1x1 convolution before the depthwise one; without, `expanded`
            must be the input's channels.
        squeeze: reduced channels of the squeeze-and-excitation after the depthwise convolution;
            0 for none.
        squeeze_activation, gate: its activations.
        skip: whether to add the input.
        drop_path: rate of stochastic depth.
        padding, epsilon: as in `ConvNormAct`.
    """

    def __init__(
        self,
        width: int,
        expanded: int,
        kernel_size: int = 3,
        strides: int = 1,
        activation: str = "relu",
        expand: bool = True,
        squeeze: int = 0,
        squeeze_activation: str = "relu",
        gate: str = "sigmoid",
        skip: bool = False,
        drop_path: float = 0.0,
        padding: str = "symmetric",
        epsilon: float = 1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.skip = skip
        self.expand = (
            ConvNormAct(expanded, activation=activation, epsilon=epsilon) if expand else None
        )
        self.depthwise = DepthwiseNormAct(kernel_size, strides, activation, padding, epsilon)
        self.squeeze = (
            SqueezeExcite(expanded, squeeze, squeeze_activation, gate) if squeeze else None
        )
        self.project = ConvNormAct(width, epsilon=epsilon)
        self.drop_path = DropPath(drop_path) if skip else None

    def call(self, x):
        y = self.expand(x) if self.expand else x
        y = self.depthwise(y)
        y = self.squeeze(y) if self.squeeze else y
        y = self.project(y)
        return x + self.drop_path(y) if self.skip else y


@keras.saving.register_keras_serializable("keras_convnets")
class FusedInvertedResidual(Block):
    """Expand with a k x k convolution, project linearly with 1x1: Tan and Le 2021, figure 2.

    Shapes and arguments as in `InvertedResidual`.
    """

    def __init__(
        self,
        width: int,
        expanded: int,
        kernel_size: int = 3,
        strides: int = 1,
        activation: str = "silu",
        skip: bool = False,
        drop_path: float = 0.0,
        padding: str = "symmetric",
        epsilon: float = 1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.skip = skip
        self.fused = ConvNormAct(
            expanded, kernel_size, strides, activation, padding=padding, epsilon=epsilon
        )
        self.linear = ConvNormAct(width, epsilon=epsilon)
        self.drop_path = DropPath(drop_path) if skip else None

    def call(self, x):
        y = self.linear(self.fused(x))
        return x + self.drop_path(y) if self.skip else y


@keras.saving.register_keras_serializable("keras_convnets")
class ConvResidual(Block):
    """x + act(norm(convolution(x))): what is left of the fused block where nothing is expanded.

    Shapes and arguments as in `InvertedResidual`.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int = 3,
        strides: int = 1,
        activation: str = "silu",
        skip: bool = False,
        drop_path: float = 0.0,
        padding: str = "symmetric",
        epsilon: float = 1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.skip = skip
        self.only = ConvNormAct(
            width, kernel_size, strides, activation, padding=padding, epsilon=epsilon
        )
        self.drop_path = DropPath(drop_path) if skip else None

    def call(self, x):
        y = self.only(x)
        return x + self.drop_path(y) if self.skip else y


@keras.saving.register_keras_serializable("keras_convnets")
class UniversalBottleneck(Block):
    """Depthwise convolution, 1x1 expansion, depthwise convolution, linear 1x1 projection.

    Qin et al. 2024 (MobileNetV4), without the strided first convolution and the last one,
    which its networks do not have. Input: (batch, height, width, channels). Output:
    (batch, height / strides, width / strides, width).

    Args:
        width: output channels.
        expanded: channels of the second depthwise convolution.
        first, second: kernel sizes of the depthwise convolutions, 0 for none. The first has no
            activation.
        strides: 1 or 2.
        shrink: where a stride of 2 is: `"stride"`, in the second depthwise convolution, or
            `"average"` or `"blur"`, in a pooling after it.
        activation: after the expansion and after the second depthwise convolution.
        skip: whether to add the input.
        layer_scale: start value of the factors of the branch, 0 for none.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        expanded: int,
        first: int,
        second: int,
        strides: int = 1,
        shrink: str = "stride",
        activation: str = "relu",
        skip: bool = False,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.skip = skip
        self.first = DepthwiseNormAct(first) if first else None
        self.expand = ConvNormAct(expanded, activation=activation)
        self.shrink = shrinking(shrink) if strides > 1 else None
        strides = 1 if self.shrink else strides
        self.second = DepthwiseNormAct(second, strides, activation) if second else None
        self.project = ConvNormAct(width)
        self.layer_scale = LayerScale(layer_scale) if layer_scale else None
        self.drop_path = DropPath(drop_path) if skip else None

    def call(self, x):
        y = self.expand(self.first(x) if self.first else x)
        y = self.second(y) if self.second else y
        y = self.project(self.shrink(y) if self.shrink else y)
        y = self.layer_scale(y) if self.layer_scale else y
        return x + self.drop_path(y) if self.skip else y


def shrinking(how: str) -> keras.layers.Layer | None:
    """What halves a map after a convolution: `None` for `"stride"`, where that does it itself."""
    if how == "stride":
        return None
    return keras.layers.AveragePooling2D(2) if how == "average" else BlurPool2D()
