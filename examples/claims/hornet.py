"""HorNet, table 3a: interactions of higher order are better than one gate, at equal size. Blocks of
order 1 to 4, each as wide as makes the parameters about as many.

    KERAS_BACKEND=torch python examples/claims/hornet.py
"""

from __future__ import annotations

import functools

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.applications.hornet import HorNetBlock

WIDTH, BLOCKS, ORDERS = 32, 2, (1, 2, 3, 4)


def build(order, width):
    """A network of one resolution."""
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(width, 2, 2, name="stem")(image)
    x = keras.layers.LayerNormalization(epsilon=1e-6, name="stem_norm")(x)
    for i in range(BLOCKS):
        block = HorNetBlock(width, order, name=f"block{i}")
        # From 1e-6, where training starts in the paper, they need more steps than there are here.
        for layer in (block.scale1, block.scale2):
            layer.init_value = 1.0
        x = block(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.LayerNormalization(epsilon=1e-6, name="head_norm")(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def widths():
    """By order, the width whose parameters are nearest to those of the highest order."""
    target = build(ORDERS[-1], WIDTH).count_params()
    for order in ORDERS:
        step = 2 ** (order - 1)
        candidates = range(-(-WIDTH // step) * step, WIDTH + 9, step)
        yield order, min(candidates, key=lambda w: abs(build(order, w).count_params() - target))


def main():
    options = arguments(__doc__)
    data = digits(options.quick)
    epochs, seeds = (1, 1) if options.quick else (15, options.seeds)
    print("| order | width | parameters | accuracy, % | of each run |\n|---|---|---|---|---|")
    for order, width in widths():
        make = functools.partial(build, order, width)
        runs = [accuracy(make, data, epochs, seed) for seed in range(seeds)]
        each = ", ".join(f"{run:.1f}" for run in runs)
        size = make().count_params()
        print(f"| {order} | {width} | {size} | {np.mean(runs):.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
