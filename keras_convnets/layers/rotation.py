"""Convolution with kernels that turn with what an example shows."""

from __future__ import annotations

import math

import keras

from keras_convnets.layers.block import Block
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import Activation, Dense, GlobalAveragePooling2D, LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02, FanOutNormal
from keras_convnets.ops import _geometry as geometry
from keras_convnets.ops import per_example_conv2d
from keras_convnets.ops.rotation import rotate_kernels


@keras.saving.register_keras_serializable("keras_convnets")
class ARCConv2D(Block):
    """3x3 convolution with, for each example, a sum of kernels turned by angles of its own.

    Pu et al. 2023 (adaptive rotated convolution, https://arxiv.org/abs/2303.07820, section 3).
    Weights, sigmoids, and angles, softsigns, are dense in the mean of
    ReLU(LayerNorm(depthwise(x))). Input: (batch, height, width, channels). Output: (batch,
    out_height, out_width, filters). No bias.

    Args:
        filters: output channels.
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        groups: of the convolution.
        kernels: how many are summed.
        most: largest angle, in degrees, at most 45.
        dropout: rate, of the features before each dense layer.

    Raises:
        ValueError: for sizes that are none, an angle too large, or groups that do not divide the
            channels.
    """

    def __init__(
        self,
        filters: int,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 1,
        groups: int = 1,
        kernels: int = 4,
        most: float = 40.0,
        dropout: float = 0.2,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= most <= 45:
            raise ValueError(f"ARCConv2D: most={most} must be from 0 to 45 degrees.")
        self.most = math.radians(most)
        self.depthwise = DepthwiseConv2D(
            3, padding=1, use_bias=False, depthwise_initializer=NORMAL_02
        )
        self.norm = LayerNormalization(epsilon=1e-5)
        self.activation = Activation("relu")
        self.pool = GlobalAveragePooling2D()
        self.weights_dropout = keras.layers.Dropout(dropout)
        self.angles_dropout = keras.layers.Dropout(dropout)
        self.weigh = Dense(kernels, activation="sigmoid", kernel_initializer=NORMAL_02)
        self.turn = Dense(
            kernels, activation="softsign", use_bias=False, kernel_initializer=NORMAL_02
        )
        self.conv = RotatedConv2D(filters, strides, padding, groups, kernels)

    def call(self, x):
        features = self.pool(self.activation(self.norm(self.depthwise(x))))
        weights = self.weigh(self.weights_dropout(features))
        angles = self.turn(self.angles_dropout(features)) * self.most
        return self.conv([x, angles, weights])


@keras.saving.register_keras_serializable("keras_convnets")
class RotatedConv2D(Direct, keras.layers.Layer):
    """The kernels of `ARCConv2D`. Input: a list of x, angles and weights, as in
    `ops.rotation.rotate_kernels`. Output: (batch, out_height, out_width, filters).
    """

    def __init__(
        self,
        filters: int,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 1,
        groups: int = 1,
        kernels: int = 4,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.groups, self.kernels = filters, groups, kernels
        self.strides = geometry.pair(strides, "strides", 1)
        self.padding = geometry.resolve_padding(padding)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        channels = input_shape[0][-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernels, 3, 3, channels // self.groups, self.filters),
            # Counts the kernels as further positions, which the groups undo.
            initializer=FanOutNormal(self.groups * self.kernels),
        )

    def call(self, inputs):
        x, angles, weights = inputs
        kernel = rotate_kernels(self.kernel, angles, weights)
        return per_example_conv2d(x, kernel, self.strides, self.padding)

    def compute_output_shape(self, input_shape):
        x = input_shape[0]
        geometry.check_groups("RotatedConv2D", x, self.filters, self.groups)
        shape = geometry.output_shape(x, (3, 3, x[-1], 1), self.strides, self.padding, (1, 1))
        return (*shape[:3], self.filters)
