"""OverLoCK, table 6: the overview's context improves the closer look. The same network, with the
overview as the context of its dynamic blocks, and with zeros instead, on few digits.

    KERAS_BACKEND=torch python examples/claims/overlock.py
"""

from __future__ import annotations

import functools

import keras
import numpy as np
from common import accuracy, arguments, digits
from keras import ops

from keras_convnets.applications.overlock import BRANCHES, OverLoCKBlock
from keras_convnets.layers import ContMixBlock, ConvNormAct, ResizeLike2D

WIDTH, OVERVIEW, CONTEXT = 16, 32, 8


def build(has_context):
    """A base network at 8x8 pixels, an overview of it at 2x2, and two dynamic blocks at 8x8."""
    image = keras.Input((32, 32, 3))
    x = ConvNormAct(WIDTH, 3, 2, "gelu")(image)
    x = ConvNormAct(WIDTH, 3, 2)(x)
    x = OverLoCKBlock(WIDTH, 5, 2 * WIDTH, scaled=True)(x)
    overview = ConvNormAct(OVERVIEW, 3, 2, "gelu")(x)
    overview = ConvNormAct(OVERVIEW, 3, 2)(overview)
    overview = OverLoCKBlock(OVERVIEW, 5, 2 * OVERVIEW, scaled=True)(overview)
    overview = keras.layers.Conv2D(CONTEXT, 1)(overview)
    prior = ResizeLike2D()([overview * float(has_context), x])
    y = ops.concatenate([x, prior], -1)
    for renew in (False, True):
        block = ContMixBlock(WIDTH, CONTEXT, 5, BRANCHES[5], 4, 2 * WIDTH, renew)
        y = block([y, prior] if renew else y)
    y = keras.layers.GlobalAveragePooling2D()(ConvNormAct(48, activation="silu")(y))
    return keras.Model(image, keras.layers.Dense(10)(y))


def main():
    options = arguments(__doc__)
    (xs, ys), test = digits(options.quick)
    data = (xs[:300], ys[:300]), test
    epochs, seeds = (1, 1) if options.quick else (12, options.seeds)
    print("| context | parameters | accuracy, % | of each run |\n|---|---|---|---|")
    for has_context in (True, False):
        make = functools.partial(build, has_context)
        runs = [accuracy(make, data, epochs, seed) for seed in range(seeds)]
        each = ", ".join(f"{run:.1f}" for run in runs)
        text = "overview" if has_context else "zeros"
        print(f"| {text} | {make().count_params()} | {np.mean(runs):.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
