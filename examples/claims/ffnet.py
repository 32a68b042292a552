"""FFNet: does a token mixer of query, keys and values need attention, or will kernels and GELU do?

Networks of about equal size that differ in their token mixers: FFNified attention, self-attention,
and one depthwise kernel, which has no values.
"""

from __future__ import annotations

import keras
from common import arguments, compare_mixers

from keras_convnets.applications.ffnet import FFNetChannelMixer, FFNifiedAttention
from keras_convnets.layers import ConvNormAct, DilatedRepConv
from keras_convnets.layers.attention import RowsToMap

BLOCKS = 3


def ffnified(width, x):
    return FFNifiedAttention(width, 7)(x)


def attention(width, x):
    rows = keras.layers.Reshape((-1, width))(keras.layers.BatchNormalization()(x))
    rows = keras.layers.MultiHeadAttention(3, width // 3)(rows, rows)
    return x + RowsToMap()([rows, x])


def depthwise(width, x):
    y = DilatedRepConv(7, [(3, 1)])(ConvNormAct(width)(x))
    return x + y


def network(mixer, width):
    """32x32 pixels to 8x8 positions, then blocks of token and channel mixer."""
    x = inputs = keras.Input((32, 32, 3))
    x = ConvNormAct(width // 2, 3, 2, "gelu")(x)
    x = ConvNormAct(width, 3, 2)(x)
    for _ in range(BLOCKS):
        x = FFNetChannelMixer(width, 3)(mixer(width, x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def main():
    mixers = ((ffnified, 24), (attention, 26), (depthwise, 27))
    compare_mixers("token mixer", network, mixers, arguments(__doc__), epochs=8)


if __name__ == "__main__":
    main()
