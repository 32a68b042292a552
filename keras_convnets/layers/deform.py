"""Deformable convolutions of four generations."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization, ZeroPadding2D
from keras_convnets.layers.initializers import (
    DEPTHWISE_TORCH_UNIFORM,
    GLOROT_UNIFORM,
    TORCH_UNIFORM,
)
from keras_convnets.ops import _geometry as geometry
from keras_convnets.ops import deform_aggregate, deform_conv2d


@keras.saving.register_keras_serializable("keras_convnets")
class DeformConv2D(Block):
    """Convolution that learns where each tap reads: DCN and, with masks, DCNv2.

    Dai et al. 2017 (https://arxiv.org/abs/1703.06211, equation 2) and Zhu et al. 2018
    (https://arxiv.org/abs/1811.11168, equation 1). A plain convolution, `offset`, says how far each
    tap moves down and right and, if modulated, the logit of its mask; it starts as zeros, so that
    the layer starts as a convolution, of half the size if modulated. Input: (batch, height, width,
    channels). Output: (batch, out_height, out_width, filters).

    Args:
        filters: output channels.
        kernel_size: int or (height, width).
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        dilation_rate: int or (vertical, horizontal); all but 1 excludes strides.
        groups: of the convolution.
        offset_groups: of channels that move together.
        modulated: whether taps have masks, sigmoids (DCNv2).
        use_bias: whether to add a bias per filter.

    Raises:
        ValueError: for sizes that are none, or groups that do not divide the channels.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        dilation_rate: int | tuple[int, int] = 1,
        groups: int = 1,
        offset_groups: int = 1,
        modulated: bool = True,
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        sides = geometry.pair(kernel_size, "kernel_size", 1)
        zeros = geometry.resolve_padding(padding)
        self.groups, self.taps = offset_groups, sides[0] * sides[1]
        self.modulated = modulated
        self.pad = None if isinstance(zeros, str) else ZeroPadding2D(zeros)
        self.offset = Conv2D(
            offset_groups * self.taps * (3 if modulated else 2),
            sides,
            strides,
            zeros if self.pad is None else "valid",
            dilation_rate=dilation_rate,
            kernel_initializer="zeros",
        )
        self.unpack_offset = UnpackChannels((offset_groups, self.taps, 2))
        self.unpack_mask = UnpackChannels((offset_groups, self.taps)) if modulated else None
        self.conv = ConvAtOffsets2D(
            filters, sides, strides, zeros, dilation_rate, groups, use_bias=use_bias
        )

    def call(self, x):
        moves = self.offset(self.pad(x) if self.pad else x)
        offset = self.unpack_offset(moves[..., : 2 * self.groups * self.taps])
        if not self.modulated:
            return self.conv([x, offset])
        mask = self.unpack_mask(moves[..., 2 * self.groups * self.taps :])
        return self.conv([x, offset, ops.sigmoid(mask)])


@keras.saving.register_keras_serializable("keras_convnets")
class DCNv3(Block):
    """Every group of channels sums moved taps, weighted by a softmax over them.

    Wang et al. 2022 (InternImage, https://arxiv.org/abs/2211.05778, section 3.1, equation 2):
    dense(aggregate(dense(x), offset, softmax(mask))), with offset and mask dense in
    GELU(LayerNorm(depthwise(x))). Input and output: (batch, height, width, channels). Points are
    counted by columns, and offsets are (x, y), as published weights have them.

    Args:
        channels: of the input; a multiple of `groups`.
        kernel_size: odd side of the kernel.
        dilation_rate: distance between taps.
        groups: of channels that share offsets and masks.
        offset_scale: factor of the kernel's grid and of the offsets.
        remove_center: whether the middle tap is left out.
        depthwise_kernel_size: side of the depthwise kernel; default: `kernel_size`.
        center_feature_scale: whether each group's sums are mixed with the pixel's own values: y
            becomes y (1 - s) + dense(x) s, with s = sigmoid(dense(GELU(...))), one for each pixel
            and group (the option of the published code; it starts at a half).

    Raises:
        ValueError: for an even kernel, or groups that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        dilation_rate: int = 1,
        groups: int = 4,
        offset_scale: float = 1.0,
        remove_center: bool = False,
        depthwise_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_groups(type(self).__name__, channels, groups)
        taps = kernel_size**2 - remove_center
        self.depthwise = DepthwiseConv2D(depthwise_kernel_size or kernel_size)
        self.norm = LayerNormalization(epsilon=1e-6)
        self.activation = Activation("gelu")
        self.offset = Dense(groups * taps * 2, kernel_initializer="zeros")
        self.mask = Dense(groups * taps, kernel_initializer="zeros")
        self.unpack_offset = UnpackChannels((groups, taps, 2))
        self.unpack_mask = UnpackChannels((groups, taps))
        self.project_in = Dense(channels, kernel_initializer=GLOROT_UNIFORM)
        self.aggregate = AggregateAtPoints(kernel_size, dilation_rate, offset_scale, remove_center)
        self.center_scale = _center_scale(groups) if center_feature_scale else None
        self.project_out = Dense(channels, kernel_initializer=GLOROT_UNIFORM)

    def call(self, x):
        local = self.activation(self.norm(self.depthwise(x)))
        mask = ops.softmax(self.unpack_mask(self.mask(local)))
        offset = self.unpack_offset(self.offset(local))
        value = self.project_in(x)
        y = self.aggregate([value, offset, mask])
        if self.center_scale:
            y = _mix_groups(y, value, self.center_scale(local))
        return self.project_out(y)


@keras.saving.register_keras_serializable("keras_convnets")
class DCNv4(Block):
    """`DCNv3` without the softmax, and with offsets and masks from one dense layer.

    Xiong et al. 2024 (https://arxiv.org/abs/2401.06197, section 3). The outputs of `offset_mask`
    are, for each group, the offsets and then the masks of its points; so many follow that are not
    used that their number is a multiple of 8, as published weights have it. They start as zeros,
    and so does the output. Input and output: (batch, height, width, channels).

    Args:
        channels, kernel_size, dilation_rate, groups, offset_scale, remove_center: as in `DCNv3`.
        depthwise_kernel_size: side of a depthwise kernel before `offset_mask`; default: none.
        center_feature_scale: as in `DCNv3`, but s = sigmoid(dense(y)).
        output_bias: whether the last dense layer adds a bias.

    Raises:
        ValueError: as `DCNv3`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        dilation_rate: int = 1,
        groups: int = 4,
        offset_scale: float = 1.0,
        remove_center: bool = False,
        depthwise_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        output_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_groups(type(self).__name__, channels, groups)
        self.taps = kernel_size**2 - remove_center
        self.used = groups * self.taps * 3
        self.depthwise = None
        if depthwise_kernel_size:
            self.depthwise = DepthwiseConv2D(
                depthwise_kernel_size, depthwise_initializer=DEPTHWISE_TORCH_UNIFORM
            )
        self.offset_mask = Dense(-(-self.used // 8) * 8, kernel_initializer="zeros")
        self.unpack = UnpackChannels((groups, self.taps * 3))
        self.unpack_offset = UnpackChannels((self.taps, 2))
        self.project_in = Dense(channels, kernel_initializer=GLOROT_UNIFORM)
        self.aggregate = AggregateAtPoints(kernel_size, dilation_rate, offset_scale, remove_center)
        self.center_scale = _center_scale(groups) if center_feature_scale else None
        self.project_out = Dense(channels, use_bias=output_bias, kernel_initializer=GLOROT_UNIFORM)

    def call(self, x):
        packed = self.offset_mask(self.depthwise(x) if self.depthwise else x)
        packed = self.unpack(packed[..., : self.used])
        offset = self.unpack_offset(packed[..., : 2 * self.taps])
        mask = packed[..., 2 * self.taps :]
        value = self.project_in(x)
        y = self.aggregate([value, offset, mask])
        if self.center_scale:
            y = _mix_groups(y, value, self.center_scale(y))
        return self.project_out(y)


@keras.saving.register_keras_serializable("keras_convnets")
class ConvAtOffsets2D(Direct, keras.layers.Layer):
    """The kernel and bias of a deformable convolution: `ops.deform_conv2d` as a layer.

    Input: a list of x, offset and, optionally, mask, as in the operator, where the arguments are
    described too. Output: (batch, out_height, out_width, filters).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        dilation_rate: int | tuple[int, int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = geometry.pair(kernel_size, "kernel_size", 1)
        self.strides = geometry.pair(strides, "strides", 1)
        self.padding = geometry.resolve_padding(padding)
        self.dilation_rate = geometry.pair(dilation_rate, "dilation_rate", 1)
        self.groups, self.use_bias = groups, use_bias

    def build(self, input_shape):
        geometry.check_groups("DeformConv2D", input_shape[0], self.filters, self.groups)
        channels = input_shape[0][-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels // self.groups, self.filters),
            initializer=TORCH_UNIFORM,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs):
        x, offset, *mask = inputs
        y = deform_conv2d(
            x,
            offset,
            self.kernel,
            mask[0] if mask else None,
            self.strides,
            self.padding,
            self.dilation_rate,
        )
        return y if self.bias is None else ops.add(y, self.bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[1][:3], self.filters)


@keras.saving.register_keras_serializable("keras_convnets")
class AggregateAtPoints(Direct, keras.layers.Layer):
    """`ops.deform_aggregate` for points counted by columns, with a scale of the whole grid.

    Input: a list of x, (batch, height, width, channels); offset, (batch, height, width, groups,
    points, 2), as (x, y); and mask, (batch, height, width, groups, points). Output: shaped as x.
    """

    def __init__(
        self,
        kernel_size: int = 3,
        dilation_rate: int = 1,
        offset_scale: float = 1.0,
        remove_center: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd: the grid has a centre.")
        self.kernel_size, self.dilation_rate = kernel_size, dilation_rate
        self.offset_scale, self.remove_center = offset_scale, remove_center

    def call(self, inputs):
        x, offset, mask = inputs
        k = self.kernel_size
        kept = np.delete(np.arange(k * k), [k * k // 2] * self.remove_center)
        order = np.searchsorted(kept, kept % k * k + kept // k)  # of row i, column j: j * k + i
        centred = np.stack([kept // k, kept % k], -1) - k // 2
        grid = ops.convert_to_tensor(
            centred * self.dilation_rate * (self.offset_scale - 1), offset.dtype
        )
        offset = grid + self.offset_scale * ops.flip(ops.take(offset, order, axis=4), -1)
        return deform_aggregate(
            x,
            offset,
            ops.take(mask, order, axis=4),
            k,
            padding=k // 2 * self.dilation_rate,
            dilation_rate=self.dilation_rate,
            remove_center=self.remove_center,
        )

    def compute_output_shape(self, input_shape):
        return input_shape[0]


@keras.saving.register_keras_serializable("keras_convnets")
class UnpackChannels(Direct, keras.layers.Layer):
    """The last axis as several, of sizes `shape`."""

    def __init__(self, shape: tuple[int, ...], **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)

    def call(self, x):
        return ops.reshape(x, (*ops.shape(x)[:-1], *self.shape))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], *self.shape)


def _center_scale(groups):
    return Dense(groups, "sigmoid", kernel_initializer="zeros")


def _mix_groups(y, value, scale):
    """y (1 - scale) + value scale, with one scale for each group of channels."""
    scale = ops.repeat(scale, value.shape[-1] // scale.shape[-1], axis=-1)
    return y * (1 - scale) + value * scale


def _check_groups(name, channels, groups):
    if channels % groups:
        raise ValueError(f"{name}: groups={groups} must divide channels={channels}.")
