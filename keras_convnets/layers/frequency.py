"""Convolution whose kernel is mixed by frequency for each example."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import (
    BatchNormalization,
    Conv2D,
    Dense,
    GlobalAveragePooling2D,
    LayerNormalization,
)
from keras_convnets.layers.global_filter import SpectralLayer
from keras_convnets.layers.initializers import FAN_OUT_NORMAL
from keras_convnets.ops import _geometry as geometry
from keras_convnets.ops import frequency_bands, per_example_conv2d, weighted_spectrum
from keras_convnets.ops.frequency import frequency_groups

DIVISORS = (2, 4, 8)
NEARLY_ZERO = keras.initializers.RandomNormal(stddev=1e-6, seed=0)


@keras.saving.register_keras_serializable("keras_convnets")
class FDConv2D(Block):
    """Frequency dynamic convolution.

    Chen et al. 2025 (https://arxiv.org/abs/2503.18783). The kernel's spectrum is cut into `groups`
    groups of frequencies, each of which gets a weight for each example (section 3.2); the kernel
    is scaled for each channel, filter, tap and entry (3.3); and the map's frequency bands by a map
    each (3.4, not for a 1x1 kernel). All scales are 2 * sigmoid and start as 1. Input: (batch,
    height, width, channels), of known sizes unless the kernel is 1x1. Output: (batch, out_height,
    out_width, filters).

    Args:
        channels: of the input.
        filters: output channels.
        kernel_size: odd side of the kernel.
        strides: int or (vertical, horizontal).
        groups: of frequencies; must divide filters * side * (channels * side / 2 + 1).
        use_bias: whether to add a bias per filter.

    Raises:
        ValueError: for sizes that are none, an odd number of channels, or a number of groups that
            does not divide that of frequencies.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel_size: int = 3,
        strides: int | tuple[int, int] = 1,
        groups: int = 4,
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"FDConv2D: kernel_size={kernel_size} must be odd.")
        self.groups = groups
        self.pool = GlobalAveragePooling2D()
        self.reduce = Dense(
            max(channels // 16, 16), use_bias=False, kernel_initializer=FAN_OUT_NORMAL
        )
        self.norm = BatchNormalization(momentum=0.9, epsilon=1e-5)
        self.activation = StarReLU()
        self.channel_scale = _dense(channels)
        self.filter_scale = _dense(filters)
        self.group_scale = _dense(groups)
        self.local_norm = LayerNormalization(epsilon=1e-5)
        self.local_scale = keras.layers.Conv1D(
            filters * kernel_size**2,
            round(math.log2(channels) / 2 + 0.5) // 2 * 2 + 1,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.Constant(1e-6),
        )
        self.conv = FrequencyConv2D(filters, kernel_size, strides, groups, use_bias)
        self.tap_scale, self.band_scales, self.bands = None, [], None
        if kernel_size > 1:
            self.tap_scale = _dense(kernel_size**2)
            self.band_scales = [
                Conv2D(1, 3, padding="same", kernel_initializer=NEARLY_ZERO) for _ in DIVISORS
            ]
            self.bands = ScaledBands()

    def call(self, x):
        pooled = self.pool(x)
        features = self.activation(self.norm(self.reduce(pooled)))
        groups = _scale(self.group_scale(features)) / self.groups
        scales = [_scale(layer(features)) for layer in (self.channel_scale, self.filter_scale)]
        scales.append(_scale(self.local_scale(ops.expand_dims(self.local_norm(pooled), -1))))
        if self.tap_scale:
            scales.append(_scale(self.tap_scale(features)))
            maps = [_scale(layer(x)) for layer in self.band_scales]
            x = self.bands([x, ops.concatenate(maps, -1)])
        return self.conv([x, groups, *scales])


def _dense(units):
    return Dense(units, kernel_initializer=NEARLY_ZERO)


def _scale(logits):
    return 2 * ops.sigmoid(logits)


@keras.saving.register_keras_serializable("keras_convnets")
class FrequencyConv2D(SpectralLayer):
    """The kernel of `FDConv2D`, as a spectrum.

    Input: a list of x, (batch, height, width, channels), the weights of the frequency groups,
    (batch, groups), and scales of channels, (batch, channels), of filters, (batch, filters), of
    entries, (batch, channels, filters * side**2), and, unless it is 1x1, of taps, (batch, side**2).
    Output: (batch, out_height, out_width, filters).

    The spectrum is that of the matrix of filters and rows by channels and columns, divided by
    half the smaller of the numbers of channels and filters. Which group a frequency is in is a
    weight that is not trained: where frequencies are equal it depends on how they were sorted.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int | tuple[int, int] = 1,
        groups: int = 4,
        use_bias: bool = True,
        route: str = "fft",
        **kwargs,
    ):
        super().__init__(route, **kwargs)
        self.filters, self.kernel_size, self.groups = filters, kernel_size, groups
        self.strides = geometry.pair(strides, "strides", 1)
        self.use_bias = use_bias

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        channels, side = input_shape[0][-1], self.kernel_size
        rows, columns = self.filters * side, channels * side
        groups = frequency_groups(rows, columns, self.groups)
        self.divisor = min(channels, self.filters) // 2
        deviation = math.sqrt(2 / (self.filters * side**2))
        self.spectrum = self.add_weight(
            name="spectrum",
            shape=(*groups.shape, 2),
            initializer=SpectrumOfNormal(columns, deviation / self.divisor),
        )
        self.frequency_group = self.add_weight(
            name="frequency_group",
            shape=groups.shape,
            dtype="int32",
            initializer=lambda shape, dtype: ops.convert_to_tensor(groups, dtype),
            trainable=False,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs):
        x, groups, by_channel, by_filter, by_entry, *by_tap = inputs
        side, channels = self.kernel_size, x.shape[-1]
        matrix = weighted_spectrum(self.spectrum, self.frequency_group, groups, self.route)
        kernel = ops.reshape(matrix, (-1, self.filters, side, channels, side))
        kernel = ops.transpose(kernel, (0, 2, 4, 3, 1)) * (self.divisor * self.groups)
        entries = ops.reshape(by_entry, (-1, channels, self.filters, side, side))
        kernel = kernel * ops.transpose(entries, (0, 3, 4, 1, 2))
        kernel = kernel * by_channel[:, None, None, :, None] * by_filter[:, None, None, None]
        if by_tap:
            kernel = kernel * ops.reshape(by_tap[0], (-1, side, side, 1, 1))
        y = per_example_conv2d(x, kernel, self.strides, side // 2)
        return y if self.bias is None else ops.add(y, self.bias)

    def by_products(self, input_shape):
        return super().by_products([input_shape])

    def compute_output_shape(self, input_shape):
        x = input_shape[0]
        kernel_shape = (self.kernel_size, self.kernel_size, x[-1], 1)
        zeros = (self.kernel_size // 2,) * 2
        shape = geometry.output_shape(x, kernel_shape, self.strides, zeros, (1, 1))
        return (*shape[:3], self.filters)


@keras.saving.register_keras_serializable("keras_convnets")
class ScaledBands(SpectralLayer):
    """A map's frequency bands, each times a map, and the lowest, in one sum again.

    Input: a list of x, (batch, height, width, channels), and maps, (batch, height, width, 3), the
    highest frequencies first. Output: shaped as x.
    """

    def __init__(self, route: str = "fft", **kwargs):
        super().__init__(route, **kwargs)

    def call(self, inputs):
        x, maps = inputs
        *bands, y = frequency_bands(x, DIVISORS, self.route)
        for i, band in enumerate(bands):
            y = y + band * maps[..., i : i + 1]
        return y

    def compute_output_shape(self, input_shape):
        return input_shape[0]


@keras.saving.register_keras_serializable("keras_convnets")
class StarReLU(Direct, keras.layers.Layer):
    """scale * relu(x)^2 + bias, two learned numbers (Yu et al. 2022, arXiv 2210.13452)."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")
        self.bias = self.add_weight(name="bias", shape=(), initializer="zeros")

    def call(self, x):
        return self.scale * ops.square(ops.relu(x)) + self.bias

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class SpectrumOfNormal(keras.initializers.Initializer):
    """The real transform of a matrix of normal numbers: (rows, columns // 2 + 1, 2)."""

    def __init__(self, columns: int, stddev: float):
        self.columns, self.stddev = columns, stddev

    def __call__(self, shape, dtype=None):
        matrix = keras.random.normal((shape[0], self.columns), stddev=self.stddev)
        spectrum = np.fft.rfft2(ops.convert_to_numpy(matrix))
        return ops.convert_to_tensor(np.stack([spectrum.real, spectrum.imag], -1), dtype)

    def get_config(self):
        return {"columns": self.columns, "stddev": self.stddev}
