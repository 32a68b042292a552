"""Convolution with kernels mixed for each example, and the mobile networks' block made of it."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import batch_norm
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import Activation, Dense, GlobalAveragePooling2D
from keras_convnets.layers.initializers import FAN_SUM_UNIFORM, FanOutNormal
from keras_convnets.layers.inverted import SqueezeExcite
from keras_convnets.layers.leaves import DropPath
from keras_convnets.ops import _geometry as geometry
from keras_convnets.ops import per_example_conv2d


@keras.saving.register_keras_serializable("keras_convnets")
class ExpertRouting(Block):
    """sigmoid(dense(mean of the map)): how much of each expert an example gets.

    Yang et al. 2019 (https://arxiv.org/abs/1904.04971, equation 2). Input: (batch, height, width,
    channels). Output: (batch, experts). The convolutions of one EfficientNet block share it.
    """

    def __init__(self, experts: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.pool = GlobalAveragePooling2D()
        self.weigh = Dense(experts, activation="sigmoid", kernel_initializer=FAN_SUM_UNIFORM)

    def call(self, x):
        return self.weigh(self.pool(x))


@keras.saving.register_keras_serializable("keras_convnets")
class CondConv2D(Direct, keras.layers.Layer):
    """Convolution whose kernel and bias are, for each example, a weighted sum of experts.

    Yang et al. 2019 (CondConv, https://arxiv.org/abs/1904.04971, equation 1). Input: a list of x,
    (batch, height, width, channels), and the weights, (batch, experts), such as `ExpertRouting`
    gives. Output: (batch, out_height, out_width, filters).

    Args:
        filters: output channels.
        kernel_size: int or (height, width).
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        dilation_rate: int or (vertical, horizontal).
        groups: of the convolution; equal to `filters` and the channels, it is depthwise.
        experts: how many kernels are mixed.
        use_bias: whether to add a bias per filter, mixed as the kernels are.

    Raises:
        ValueError: for sizes that are none, groups that do not divide the channels, or weights for
            another number of experts.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        dilation_rate: int | tuple[int, int] = 1,
        groups: int = 1,
        experts: int = 4,
        use_bias: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.groups, self.experts = filters, groups, experts
        self.use_bias = use_bias
        self.kernel_size = geometry.pair(kernel_size, "kernel_size", 1)
        self.strides = geometry.pair(strides, "strides", 1)
        self.padding = geometry.resolve_padding(padding)
        self.dilation_rate = geometry.pair(dilation_rate, "dilation_rate", 1)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        channels = input_shape[0][-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.experts, *self.kernel_size, channels // self.groups, self.filters),
            # Counts the experts as further kernel positions, which the groups undo.
            initializer=FanOutNormal(self.groups * self.experts),
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.experts, self.filters), initializer="zeros"
            )

    def call(self, inputs):
        x, weights = inputs
        kernel = ops.matmul(weights, ops.reshape(self.kernel, (self.experts, -1)))
        kernel = ops.reshape(kernel, (-1, *self.kernel.shape[1:]))
        y = per_example_conv2d(x, kernel, self.strides, self.padding, self.dilation_rate)
        if self.bias is None:
            return y
        return y + ops.expand_dims(ops.matmul(weights, self.bias), (1, 2))

    def compute_output_shape(self, input_shape):
        x, weights = input_shape
        if len(weights) != 2 or weights[1] != self.experts:
            raise ValueError(
                f"CondConv2D: the weights must be (batch, experts) with experts={self.experts}. "
                f"Received: {tuple(weights)}"
            )
        geometry.check_groups("CondConv2D", x, self.filters, self.groups)
        kernel_shape = (*self.kernel_size, x[-1], 1)
        shape = geometry.output_shape(
            x, kernel_shape, self.strides, self.padding, self.dilation_rate
        )
        return (*shape[:3], self.filters)


@keras.saving.register_keras_serializable("keras_convnets")
class CondConvNormAct(Block):
    """`CondConv2D`, BatchNorm and activation.

    Input: a list of (batch, height, width, channels) and the weights of the experts, (batch,
    experts). Output: (batch, ceil(height / strides), ceil(width / strides), filters). Arguments as
    in `CondConv2D` and `ConvNormAct`.
    """

    def __init__(
        self,
        filters: int,
        experts: int,
        kernel_size: int = 1,
        strides: int = 1,
        activation: str | None = None,
        groups: int = 1,
        padding: str = "symmetric",
        epsilon: float = 1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        zeros = kernel_size // 2 if padding == "symmetric" else padding
        self.conv = CondConv2D(filters, kernel_size, strides, zeros, groups=groups, experts=experts)
        self.norm = batch_norm(epsilon)
        self.activation = Activation(activation) if activation else None

    def call(self, inputs):
        x = self.norm(self.conv(inputs))
        return self.activation(x) if self.activation else x


@keras.saving.register_keras_serializable("keras_convnets")
class CondInvertedResidual(Block):
    """`InvertedResidual` whose three convolutions are `CondConv2D`s, with one routing for all.

    Shapes and arguments as there. `experts`: how many kernels are mixed.
    """

    def __init__(
        self,
        width: int,
        expanded: int,
        experts: int,
        kernel_size: int = 3,
        strides: int = 1,
        activation: str = "silu",
        squeeze: int = 0,
        skip: bool = False,
        drop_path: float = 0.0,
        padding: str = "symmetric",
        epsilon: float = 1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.skip = skip
        convention = dict(experts=experts, epsilon=epsilon)
        self.routing = ExpertRouting(experts)
        self.expand = CondConvNormAct(expanded, activation=activation, **convention)
        self.depthwise = CondConvNormAct(
            expanded,
            kernel_size=kernel_size,
            strides=strides,
            activation=activation,
            groups=expanded,
            padding=padding,
            **convention,
        )
        self.squeeze = SqueezeExcite(expanded, squeeze, activation) if squeeze else None
        self.project = CondConvNormAct(width, **convention)
        self.drop_path = DropPath(drop_path) if skip else None

    def call(self, x):
        weights = self.routing(x)
        y = self.depthwise([self.expand([x, weights]), weights])
        y = self.squeeze(y) if self.squeeze else y
        y = self.project([y, weights])
        return x + self.drop_path(y) if self.skip else y
