"""LSNet: do kernels that each pixel predicts from a large neighbourhood beat static ones?

Networks of equal size that differ in their mixers: LS convolution, and static depthwise kernels as
small as those that it sums with, or as large as those that it looks with. The static networks are
wider, for as many parameters.
"""

from __future__ import annotations

import keras
from common import arguments, compare_mixers

from keras_convnets.applications.lsnet import FeedForward, LSConv2D
from keras_convnets.layers import ConvNormAct, DepthwiseNormAct

BLOCKS = 3


def ls_conv(width, x):
    return LSConv2D(width)(x)


def static_3x3(width, x):
    return x + DepthwiseNormAct(3)(x)


def static_7x7(width, x):
    return x + DepthwiseNormAct(7)(x)


def network(mixer, width):
    """32x32 pixels to 8x8 positions, then blocks of mixer and feed-forward network."""
    x = inputs = keras.Input((32, 32, 3))
    x = ConvNormAct(width // 2, 3, 2, "relu")(x)
    x = ConvNormAct(width, 3, 2)(x)
    for _ in range(BLOCKS):
        x = FeedForward(width)(mixer(width, x))
    x = keras.layers.BatchNormalization()(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def main():
    mixers = ((ls_conv, 32), (static_3x3, 37), (static_7x7, 34))
    compare_mixers("mixer", network, mixers, arguments(__doc__), epochs=8)


if __name__ == "__main__":
    main()
