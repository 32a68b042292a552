"""FFNet: does a token mixer of query, keys and values need attention, or will kernels and GELU do?

Networks of about equal size that differ in their token mixers: FFNified attention, self-attention,
and one depthwise kernel, which has no values.
"""

from __future__ import annotations

import functools

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.applications.ffnet import FFNetChannelMixer, FFNifiedAttention
from keras_convnets.graph import count
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
    options = arguments(__doc__)
    data = digits(options.quick)
    epochs, seeds = (1, 1) if options.quick else (8, options.seeds)
    print("| token mixer | width | parameters | MACs, M | accuracy, % | deviation over seeds |")
    print("|---|---|---|---|---|---|")
    for mixer, width in ((ffnified, 24), (attention, 26), (depthwise, 27)):
        build = functools.partial(network, mixer, width)
        scores = [accuracy(build, data, epochs, seed) for seed in range(seeds)]
        model = build()
        print(
            f"| {mixer.__name__} | {width} | {model.count_params():,} "
            f"| {count(model).macs / 1e6:.2f} | {np.mean(scores):.2f} | {np.std(scores):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
