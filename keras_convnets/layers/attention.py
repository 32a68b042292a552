"""Attention between the positions of a map."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import DepthwiseNormAct
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import BatchNormalization, Conv2D, Dense
from keras_convnets.layers.initializers import GLOROT_UNIFORM, NORMAL_02
from keras_convnets.layers.leaves import DropPath, LayerScale


@keras.saving.register_keras_serializable("keras_convnets")
class RowsToMap(Direct, keras.layers.Layer):
    """Rows of vectors as the map that they were, whatever its size.

    Input: (batch, height * width * split, channels) and any map of that height and width. Output:
    (batch, height, width, split * channels): `split` rows side by side at each position.
    """

    def __init__(self, split: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.split = split

    def call(self, inputs):
        rows, like = inputs
        height, width = ops.shape(like)[1:3]
        return ops.reshape(rows, (-1, height, width, self.split * rows.shape[-1]))

    def compute_output_shape(self, input_shape):
        rows, like = input_shape
        return (*like[:3], self.split * rows[-1])


@keras.saving.register_keras_serializable("keras_convnets")
class SelfAttention2D(Block):
    """proj(softmax(q k^T / sqrt(width / heads)) v) between all positions, by heads.

    Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762, section 3.2). Input and output: (batch,
    height, width, width_of_stage).

    Args:
        width: channels of input and output.
        heads: attentions side by side, each of `width / heads` channels.
        use_bias: whether the two linear maps add biases.
        kernel_initializer: of the two linear maps.

    Raises:
        ValueError: for heads that do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        use_bias: bool = True,
        kernel_initializer: str = NORMAL_02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not heads or width % heads:
            raise ValueError(f"SelfAttention2D: heads={heads} must divide width={width}.")
        self.scale = (width // heads) ** -0.5
        linear = {"use_bias": use_bias, "kernel_initializer": kernel_initializer}
        self.qkv = Dense(3 * width, **linear)
        self.to_heads = keras.layers.Reshape((-1, heads, width // heads))
        self.to_rows = keras.layers.Reshape((-1, width))
        self.to_map = RowsToMap()
        self.proj = Dense(width, **linear)

    def call(self, x):
        q, k, v = (self.to_heads(part) for part in ops.split(self.qkv(x), 3, axis=-1))
        q = ops.transpose(q, (0, 2, 1, 3)) * self.scale
        weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 2, 3, 1))))
        y = ops.matmul(weights, ops.transpose(v, (0, 2, 1, 3)))
        return self.proj(self.to_map([self.to_rows(ops.transpose(y, (0, 2, 1, 3))), x]))


@keras.saving.register_keras_serializable("keras_convnets")
class MultiQueryAttention(Block):
    """softmax(q k^T / sqrt(key_dim)) v with many queries but one key and one value a position.

    Shazeer 2019 (https://arxiv.org/abs/1911.02150), section 3; with fewer keys and values than
    queries Qin et al. 2024 (MobileNetV4). Input and output: (batch, height, width,
    channels).

    Args:
        channels: of input and output.
        heads: queries a position.
        key_dim: length of queries, keys and values.
        strides: of the depthwise 3x3 convolutions, each with a BatchNorm, that keys and values come
            from; 1 for none.
    """

    def __init__(self, channels: int, heads: int, key_dim: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.key_dim = key_dim
        self.query = pointwise(heads * key_dim)
        self.queries = keras.layers.Reshape((-1, key_dim))
        self.key_reduce = reduction(strides) if strides > 1 else None
        self.key = pointwise(key_dim)
        self.keys = keras.layers.Reshape((-1, key_dim))
        self.value_reduce = reduction(strides) if strides > 1 else None
        self.value = pointwise(key_dim)
        self.values = keras.layers.Reshape((-1, key_dim))
        self.to_map = RowsToMap(heads)
        self.project = pointwise(channels)

    def call(self, x):
        # All heads have the same keys, so that each head of each position is a query like another.
        queries = self.queries(self.query(x))
        keys = self.keys(self.key(self.key_reduce(x) if self.key_reduce else x))
        values = self.values(self.value(self.value_reduce(x) if self.value_reduce else x))
        keys = ops.transpose(keys, (0, 2, 1)) * self.key_dim**-0.5
        weights = ops.softmax(ops.matmul(queries, keys))
        return self.project(self.to_map([ops.matmul(weights, values), x]))


@keras.saving.register_keras_serializable("keras_convnets")
class MobileAttention(Block):
    """x + gamma * attention(norm(x)): Qin et al. 2024 (MobileNetV4).

    Input and output: (batch, height, width, channels).

    Args:
        channels, heads, key_dim, strides: as in `MultiQueryAttention`.
        layer_scale: start value of gamma.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        key_dim: int,
        strides: int = 1,
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.norm = BatchNormalization(momentum=0.9, epsilon=1e-5)
        self.attention = MultiQueryAttention(channels, heads, key_dim, strides)
        self.layer_scale = LayerScale(layer_scale)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        return x + self.drop_path(self.layer_scale(self.attention(self.norm(x))))


def pointwise(width):
    return Conv2D(width, 1, use_bias=False, kernel_initializer=GLOROT_UNIFORM)


def reduction(strides):
    return DepthwiseNormAct(3, strides, kernel_initializer=GLOROT_UNIFORM)
