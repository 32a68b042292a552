"""Attention over channels and positions, at the end of a residual branch."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import ConvNormAct
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import (
    Activation,
    BatchNormalization,
    Conv2D,
    GlobalAveragePooling2D,
)
from keras_convnets.layers.initializers import FAN_OUT_NORMAL


@keras.saving.register_keras_serializable("keras_convnets")
class CBAM(Block):
    """Attention over channels, then over positions, both from averages and maxima.

    Woo et al. 2018 (https://arxiv.org/abs/1807.06521): x' = x * sigmoid(mlp(mean) + mlp(max)) over
    the map (equation 2), then x' * sigmoid(norm(conv7x7([mean, max]))) over the channels
    (equation 3). Input and output: (batch, height, width, channels).

    Args:
        channels: of the input.
        reduced: channels within the mlp, whose layers have biases; default: channels // 16.
    """

    def __init__(self, channels: int, reduced: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.average = GlobalAveragePooling2D(keepdims=True)
        self.maximum = keras.layers.GlobalMaxPooling2D(keepdims=True)
        self.reduce = Conv2D(
            reduced or channels // 16, 1, activation="relu", kernel_initializer=FAN_OUT_NORMAL
        )
        self.expand = Conv2D(channels, 1, kernel_initializer=FAN_OUT_NORMAL)
        self.channel_gate = Activation("sigmoid")
        self.spatial = ConvNormAct(1, 7, activation="sigmoid")

    def call(self, x):
        means, maxima = (self.expand(self.reduce(pool(x))) for pool in (self.average, self.maximum))
        x = x * self.channel_gate(means + maxima)
        means, maxima = (f(x, axis=-1, keepdims=True) for f in (ops.mean, ops.max))
        return x * self.spatial(ops.concatenate([means, maxima], axis=-1))


@keras.saving.register_keras_serializable("keras_convnets")
class EfficientLocalAttention(Block):
    """x * a(mean over each row) * a(mean over each column), a = sigmoid(norm(conv(...))).

    Xu and Wan 2024 (ELA, https://arxiv.org/abs/2403.01123); rows and columns have
    the same convolution and GroupNorm. Input and output: (batch, height, width, channels).

    Args:
        channels: of the input; a multiple of the norm's groups, which are 32 in ELA-T, else 16.
        variant: `"T"` (5 taps) and `"B"` (7 taps) have a depthwise convolution, `"S"` (5 taps) and
            `"L"` (7 taps) one in groups of 8 channels.

    Raises:
        ValueError: for another variant or number of channels.
    """

    def __init__(self, channels: int, variant: str = "B", **kwargs):
        super().__init__(**kwargs)
        if variant not in ("T", "B", "S", "L"):
            raise ValueError(
                f"EfficientLocalAttention: variant={variant!r} must be 'T', 'B', 'S' or 'L'."
            )
        norm_groups = 32 if variant == "T" else 16
        if channels % norm_groups:
            raise ValueError(
                f"EfficientLocalAttention: channels={channels} must be a multiple of {norm_groups} "
                f"for variant {variant!r}."
            )
        taps = 5 if variant in "TS" else 7
        if variant in "TB":
            self.conv = DepthwiseConv2D(
                (taps, 1),
                padding="same",
                use_bias=False,
                depthwise_initializer=FAN_OUT_NORMAL,
            )
        else:
            self.conv = Conv2D(
                channels,
                (taps, 1),
                padding="same",
                groups=channels // 8,
                use_bias=False,
                kernel_initializer=FAN_OUT_NORMAL,
            )
        self.norm = keras.layers.GroupNormalization(norm_groups, epsilon=1e-5)
        self.gate = Activation("sigmoid")

    def call(self, x):
        rows = ops.mean(x, axis=2, keepdims=True)
        columns = ops.transpose(ops.mean(x, axis=1, keepdims=True), (0, 2, 1, 3))
        rows, columns = (self.gate(self.norm(self.conv(line))) for line in (rows, columns))
        return x * rows * ops.transpose(columns, (0, 2, 1, 3))


@keras.saving.register_keras_serializable("keras_convnets")
class NearestLike(Direct, keras.layers.Layer):
    """Enlarges a map to the size of another: position i takes i * size // size of the other.

    Input: a map (batch, h, w, channels) and one (batch, height, width, any). Output:
    (batch, height, width, channels).
    """

    def call(self, inputs):
        x, like = inputs
        for axis in (1, 2):
            size, target = ops.shape(x)[axis], ops.shape(like)[axis]
            x = ops.take(x, ops.arange(target) * size // target, axis=axis)
        return x

    def compute_output_shape(self, input_shape):
        x, like = input_shape
        return (x[0], *like[1:3], x[3])


@keras.saving.register_keras_serializable("keras_convnets")
class MeanNearby(Direct, keras.layers.Layer):
    """Mean over windows of 2 * extent - 1 positions a side, every `extent`; what lies outside the
    map does not count.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / extent),
    ceil(width / extent), channels).
    """

    def __init__(self, extent: int, **kwargs):
        super().__init__(**kwargs)
        self.extent = extent

    def call(self, x):
        return self._pool(x) / self._pool(ops.ones_like(x[..., :1]))

    def _pool(self, x):
        margin = (self.extent - 1, self.extent - 1)
        x = ops.pad(x, ((0, 0), margin, margin, (0, 0)))
        return ops.average_pool(x, 2 * self.extent - 1, self.extent, padding="valid")

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        return (batch, *(size and -(-size // self.extent) for size in sizes), channels)


@keras.saving.register_keras_serializable("keras_convnets")
class GatherExcite(Block):
    """x * sigmoid(enlarge(gather(x))): each position by what is around it, or by the whole map.

    Hu et al. 2018 (https://arxiv.org/abs/1810.12348), section 3. Input and output:
    (batch, height, width, channels).

    - `form="minus"` has no parameters: gather is the mean over the extent.
    - `form="theta"` learns it: a depthwise 3x3 convolution of stride 2 with BatchNorm
      for each factor of 2 in the extent, with ReLU between them; or over the whole map a depthwise
      convolution of the map's size, with BatchNorm.
    - `form="plus"` puts ReLU and two 1x1 convolutions with biases after that.

    Args:
        channels: of the input.
        form: `"minus"`, `"theta"` or `"plus"`.
        extent: 2, 4 or 8, or 0 for the whole map.
        map_size: (height, width) of the map, for `extent=0` with parameters.
        reduced: channels between the 1x1 convolutions of `"plus"`; default: channels // 16.

    Raises:
        ValueError: for another form or extent, and where `map_size` is missing.
    """

    def __init__(
        self,
        channels: int,
        form: str = "minus",
        extent: int = 0,
        map_size: tuple[int, int] | None = None,
        reduced: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if form not in ("minus", "theta", "plus"):
            raise ValueError(f"GatherExcite: form={form!r} must be 'minus', 'theta' or 'plus'.")
        if extent not in (0, 2, 4, 8):
            raise ValueError(f"GatherExcite: extent={extent!r} must be 0, 2, 4 or 8.")
        if form != "minus" and extent == 0 and map_size is None:
            raise ValueError(
                f"GatherExcite: form={form!r} over the whole map (extent=0) needs map_size, the "
                "(height, width) of the map, which is its kernel's size."
            )
        if form == "minus":
            self.gather = [MeanNearby(extent) if extent else GlobalAveragePooling2D(keepdims=True)]
        elif extent:
            steps = extent.bit_length() - 1
            self.gather = [GatherStep(3, 2, 1, i < steps - 1) for i in range(steps)]
        else:
            self.gather = [GatherStep(map_size, 1, 0, False)]
        if form == "plus":
            self.mlp = [
                Activation("relu"),
                Conv2D(
                    reduced or channels // 16,
                    1,
                    activation="relu",
                    kernel_initializer=FAN_OUT_NORMAL,
                ),
                Conv2D(channels, 1, kernel_initializer=FAN_OUT_NORMAL),
            ]
        else:
            self.mlp = []
        self.gate = Activation("sigmoid")
        self.enlarge = NearestLike() if extent else None

    def call(self, x):
        y = x
        for layer in (*self.gather, *self.mlp):
            y = layer(y)
        y = self.gate(y)
        return x * (self.enlarge([y, x]) if self.enlarge else y)


@keras.saving.register_keras_serializable("keras_convnets")
class GatherStep(Block):
    """Depthwise convolution, BatchNorm, and ReLU if another step follows."""

    def __init__(self, kernel_size, strides: int, padding: int, followed: bool, **kwargs):
        super().__init__(**kwargs)
        self.conv = DepthwiseConv2D(
            kernel_size,
            strides,
            padding,
            use_bias=False,
            depthwise_initializer=FAN_OUT_NORMAL,
        )
        self.norm = BatchNormalization(momentum=0.9, epsilon=1e-5)
        self.activation = Activation("relu") if followed else None

    def call(self, x):
        x = self.norm(self.conv(x))
        return self.activation(x) if self.activation else x
