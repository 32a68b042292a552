"""Small leaf layers: the only places, beside Keras's own layers, where variables live."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.direct import Direct


@keras.saving.register_keras_serializable("keras_convnets")
class LayerScale(Direct, keras.layers.Layer):
    """gamma * x with one learned gamma per channel (Touvron et al. 2021, CaiT, equation 4).

    Input and output: (..., channels). `init_value`: the start value of every gamma.
    """

    def __init__(self, init_value: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.init_value = init_value

    def build(self, input_shape):
        self.gamma = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.init_value),
            name="gamma",
        )

    def call(self, x):
        return x * self.gamma

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class SkipInit(Direct, keras.layers.Layer):
    """x times one learned number that starts at zero (De and Smith 2020, arXiv 2002.10444)."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(), initializer="zeros", name="skipinit_gain")

    def call(self, x):
        return x * self.gain

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class GlobalResponseNorm(Direct, keras.layers.Layer):
    """x + gamma * x * n(x) + beta, n(x) = |x|_2 over the map / its mean over the channels.

    Woo et al. 2023 (ConvNeXt V2), algorithm 1. Input and output: (batch, height, width, channels).
    The norm is taken in float32 whatever the compute dtype: a sum of squares overflows float16.
    `use_bias`: whether there is beta.
    """

    def __init__(self, epsilon: float = 1e-6, use_bias: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.use_bias = use_bias

    def build(self, input_shape):
        channels = (input_shape[-1],)
        self.gamma = self.add_weight(shape=channels, initializer="zeros", name="gamma")
        self.beta = None
        if self.use_bias:
            self.beta = self.add_weight(shape=channels, initializer="zeros", name="beta")

    def call(self, x):
        square = ops.square(ops.cast(x, "float32"))
        norm = ops.sqrt(ops.sum(square, axis=(1, 2), keepdims=True))
        ratio = norm / (ops.mean(norm, axis=-1, keepdims=True) + self.epsilon)
        y = x * (1 + self.gamma * ops.cast(ratio, x.dtype))  # once through the map
        return y if self.beta is None else y + self.beta

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class DropPath(Direct, keras.layers.Layer):
    """Stochastic depth: drops whole samples of a residual branch (Huang et al. 2016, section 3).

    In training each sample is kept with probability 1 - rate and then divided by it; at inference,
    and at rate 0, the identity. Input and output: (batch, ...).
    """

    def __init__(self, rate: float = 0.0, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"DropPath: rate={rate} must be at least 0 and below 1.")
        self.rate = rate
        self.seed = seed
        if rate:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, x, training=None):
        if not training or not self.rate:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        keep = 1 - self.rate
        kept = keras.random.uniform(shape, seed=self.seed_generator) < keep
        return x * ops.cast(kept, x.dtype) / keep

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class ChannelShuffle(Direct, keras.layers.Layer):
    """Deals the channels out: the first of each group, then the second of each, and so on.

    Input and output: (batch, height, width, channels). What shuffling in `channels / groups` groups
    undoes.

    Raises:
        ValueError: if the groups do not divide the channels.
    """

    def __init__(self, groups: int, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups

    def call(self, x):
        shape = ops.shape(x)
        x = ops.reshape(x, (-1, self.groups, shape[-1] // self.groups))
        return ops.reshape(ops.swapaxes(x, 1, 2), shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def build(self, input_shape):
        if input_shape[-1] % self.groups:
            raise ValueError(
                f"ChannelShuffle: groups={self.groups} must divide the channels of the input. "
                f"Received: input_shape={tuple(input_shape)}"
            )


def stochastic_depth(rate: float, depths) -> list[list[float]]:
    """Drop-path rates that grow linearly from 0 to `rate` over all blocks, grouped by stage.

    Example: `stochastic_depth(0.3, (2, 2))` is `[[0.0, 0.1], [0.2, 0.3]]`.
    """
    last = max(sum(depths) - 1, 1)
    rates = iter(rate * i / last for i in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def make_divisible(channels: float, divisor: int = 8, keep: float = 0.9) -> int:
    """The multiple of `divisor` nearest to `channels`, at least `divisor`; the next one where that
    is below the share `keep` of `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= keep * channels else rounded + divisor
