"""DCLS, section 5: weights that find their places in a large kernel against a dense small kernel of
as many parameters; and against weights whose places stay where they were drawn, on few digits.

    KERAS_BACKEND=torch python examples/claims/convnext_dcls.py
"""

from __future__ import annotations

import functools

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.layers import DCLSConv2D, DepthwiseConv2D

# Three blocks that share positions have (3 + 2) * 15 numbers a channel, as three 5x5 kernels do.
WIDTH, BLOCKS, DENSE, LARGE, COUNT = 24, 3, 5, 13, 15


def build(kind):
    """ConvNeXt blocks on 16x16 maps, whose depthwise kernels are of a kind."""
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(WIDTH, 2, 2)(image)
    x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    first = None
    for _ in range(BLOCKS):
        if kind == "dense":
            depthwise = DepthwiseConv2D(DENSE)
        else:
            depthwise = DCLSConv2D(WIDTH, LARGE, COUNT, groups=WIDTH)
            if first is not None:
                depthwise.share_positions(first)
            first = first or depthwise
        y = keras.layers.LayerNormalization(epsilon=1e-6)(depthwise(x))
        y = keras.layers.Dense(4 * WIDTH, "gelu")(y)
        x = x + keras.layers.Dense(WIDTH)(y)
    if first is not None:
        spread = np.random.default_rng(0).normal(scale=LARGE / 6, size=first.positions.shape)
        first.positions.assign(np.clip(spread, -(LARGE // 2), LARGE // 2))
        first.positions.trainable = kind == "learned"
    x = keras.layers.LayerNormalization(epsilon=1e-6)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, keras.layers.Dense(10)(x))


def main():
    options = arguments(__doc__)
    (xs, ys), test = digits(options.quick)
    data = (xs[:300], ys[:300]), test
    epochs, seeds = (1, 1) if options.quick else (20, options.seeds)
    kinds = {
        "dense": f"dense {DENSE}x{DENSE}",
        "fixed": f"{COUNT} weights in {LARGE}x{LARGE}, places as drawn",
        "learned": f"{COUNT} weights in {LARGE}x{LARGE}, places learned",
    }
    print("| kernel | parameters | accuracy, % | of each run |\n|---|---|---|---|")
    for kind, text in kinds.items():
        make = functools.partial(build, kind)
        runs = [accuracy(make, data, epochs, seed) for seed in range(seeds)]
        each = ", ".join(f"{run:.1f}" for run in runs)
        print(f"| {text} | {make().count_params()} | {np.mean(runs):.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
