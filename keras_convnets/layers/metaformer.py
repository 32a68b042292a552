"""What MetaFormers are made of: one block, and token mixers to choose from."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.attention import SelfAttention2D
from keras_convnets.layers.block import Block
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import AveragePooling2D, Conv2D, Dense, LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02, SOFTMAX_UNIFORM
from keras_convnets.layers.leaves import DropPath, LayerScale

HEAD_DIM = 32


@keras.saving.register_keras_serializable("keras_convnets")
class StarReLU(Direct, keras.layers.Layer):
    """scale * relu(x)^2 + bias, two learned numbers that start at 1 and 0.

    Yu et al. 2022 (https://arxiv.org/abs/2210.13452, equation 5). Input and output: (...,).
    """

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(1,), initializer="ones")
        self.bias = self.add_weight(name="bias", shape=(1,), initializer="zeros")

    def call(self, x):
        return self.scale * ops.square(ops.relu(x)) + self.bias

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class PoolMixer2D(Block):
    """The mean of the pixels around each, less itself.

    Yu et al. 2021 (PoolFormer, https://arxiv.org/abs/2111.11418, equation 4). Input and output:
    (batch, height, width, channels). `pool_size`: odd side of the window, of which only what is
    inside the map counts.
    """

    def __init__(self, pool_size: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.pool = AveragePooling2D(pool_size, 1, "same")

    def call(self, x):
        return self.pool(x) - x


@keras.saving.register_keras_serializable("keras_convnets")
class RandomMatrix(keras.layers.Dense):
    """x M^T for a square matrix M as wide as x, random and never trained, whose rows sum to one at
    the start. Input and output: (..., size)."""

    def __init__(self, **kwargs):
        kwargs = {"trainable": False, **kwargs}
        super().__init__(1, use_bias=False, kernel_initializer=SOFTMAX_UNIFORM, **kwargs)

    def build(self, input_shape):
        self.units = input_shape[-1]
        super().build(input_shape)

    def by_products(self, input_shape):
        """As a plain dense layer."""
        dense = Dense(self.units, use_bias=False, name=self.name)
        dense.build(input_shape)
        dense.set_weights(self.get_weights())
        return dense

    def get_config(self):
        return {name: getattr(self, name) for name in ("name", "trainable")} | {
            "dtype": keras.dtype_policies.serialize(self.dtype_policy)
        }


@keras.saving.register_keras_serializable("keras_convnets")
class RandomMixer2D(Block):
    """Each position becomes a mixture of all, by one random matrix that is never trained.

    Yu et al. 2022 (RandFormer, https://arxiv.org/abs/2210.13452, equation 4). Input and output:
    (batch, height, width, channels). The matrix belongs to the number of positions.

    Raises:
        ValueError: for a map whose height or width is unknown.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.random_matrix = RandomMatrix()

    def call(self, x):
        _, height, width, channels = x.shape
        if None in (height, width):
            raise ValueError(
                "RandomMixer2D: the matrix has a row for each position, so the input must be "
                "(batch, height, width, channels), all known but the batch. Received: "
                f"input_shape={tuple(x.shape)}"
            )
        rows = ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (-1, channels, height * width))
        maps = ops.reshape(self.random_matrix(rows), (-1, channels, height, width))
        return ops.transpose(maps, (0, 2, 3, 1))


@keras.saving.register_keras_serializable("keras_convnets")
class SeparableMixer2D(Block):
    """pointwise(depthwise(StarReLU(pointwise(x)))), twice as wide inside.

    Yu et al. 2022 (ConvFormer, https://arxiv.org/abs/2210.13452, equation 6), after the inverted
    residuals of MobileNetV2. Input and output: (batch, height, width, width_of_stage).
    """

    def __init__(self, width: int, kernel_size: int = 7, **kwargs):
        super().__init__(**kwargs)
        self.pwconv1 = pointwise(2 * width, "conv")
        self.act1 = StarReLU()
        self.dwconv = DepthwiseConv2D(kernel_size, use_bias=False, depthwise_initializer=NORMAL_02)
        self.pwconv2 = pointwise(width, "conv")

    def call(self, x):
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


MIXERS = {
    "identity": lambda width: keras.layers.Identity(),
    "pool": lambda width: PoolMixer2D(),
    "random": lambda width: RandomMixer2D(),
    "separable": SeparableMixer2D,
    "attention": lambda width: SelfAttention2D(width, width // HEAD_DIM, use_bias=False),
}


@keras.saving.register_keras_serializable("keras_convnets")
class MetaFormerBlock(Block):
    """r x + mixer(norm(x)), then r x + fc2(StarReLU(fc1(norm(x)))); no biases.

    Yu et al. 2022 (https://arxiv.org/abs/2210.13452, figure 2). Input and output: (batch, height,
    width, width_of_stage).

    Args:
        width: channels of input and output; a quarter of those between `fc1` and `fc2`.
        mixer: `"identity"`, `"pool"`, `"random"`, `"separable"` or `"attention"`.
        norm: `"map"`, over all values of a map, or `"channels"`, over those of a position.
        res_scale: whether the identity branches have learned factors r, that start at 1.
        mlp: `"conv"` or `"dense"`, whether checkpoints hold `fc1` and `fc2` as 1x1 convolutions or
            as matrices.
        drop_path: rate of stochastic depth.

    Raises:
        ValueError: for another mixer or norm.
    """

    def __init__(
        self,
        width: int,
        mixer: str = "pool",
        norm: str = "map",
        res_scale: bool = False,
        mlp: str = "conv",
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, given, known in (("mixer", mixer, MIXERS), ("norm", norm, NORMS)):
            if given not in known:
                raise ValueError(
                    f"MetaFormerBlock: {name}={given!r} must be one of {', '.join(known)}."
                )
        self.norm1 = NORMS[norm]()
        self.mixer = MIXERS[mixer](width)
        self.drop_path1 = DropPath(drop_path)
        self.res_scale1 = LayerScale(1.0) if res_scale else None
        self.norm2 = NORMS[norm]()
        self.fc1 = pointwise(4 * width, mlp)
        self.act = StarReLU()
        self.fc2 = pointwise(width, mlp)
        self.drop_path2 = DropPath(drop_path)
        self.res_scale2 = LayerScale(1.0) if res_scale else None

    def call(self, x):
        kept = self.res_scale1(x) if self.res_scale1 else x
        x = kept + self.drop_path1(self.mixer(self.norm1(x)))
        kept = self.res_scale2(x) if self.res_scale2 else x
        return kept + self.drop_path2(self.fc2(self.act(self.fc1(self.norm2(x)))))


NORMS = {
    "map": lambda: keras.layers.GroupNormalization(1, epsilon=1e-6, center=False),
    "channels": lambda: LayerNormalization(epsilon=1e-6, center=False),
}


def pointwise(width, form, use_bias=False):
    """A linear map of the channels, as a matrix or as a 1x1 convolution."""
    options = {"use_bias": use_bias, "kernel_initializer": NORMAL_02}
    if form == "conv":
        return Conv2D(width, 1, **options)
    return Dense(width, **options)
