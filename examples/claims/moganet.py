"""MogaNet, section 5.3: gating and context of several orders beat a plain depthwise convolution of
as many parameters. Both stand in MogaNet's block, on few digits.

    KERAS_BACKEND=torch python examples/claims/moganet.py
"""

from __future__ import annotations

import functools

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.applications.moganet import (
    ChannelAggregation,
    HalvingConv,
    MultiOrderGatedAggregation,
)
from keras_convnets.layers import Block, DepthwiseConv2D, batch_norm

WIDTH, BLOCKS = 16, 2


class PlainAggregation(Block):
    """x + project(silu(depthwise5x5(expand(x)))), of as many parameters as the gated one."""

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.expand = keras.layers.Conv2D(2 * width + 3, 1)
        self.depthwise = DepthwiseConv2D(5)
        self.activation = keras.layers.Activation("silu")
        self.project = keras.layers.Conv2D(width, 1)

    def call(self, x):
        return x + self.project(self.activation(self.depthwise(self.expand(x))))


class MixingBlock(Block):
    """MogaNet's block around any aggregation, without layer scales: from 1e-5, where they start,
    they need more steps than there are here."""

    def __init__(self, aggregation: Block, **kwargs):
        super().__init__(**kwargs)
        self.norm1 = batch_norm()
        self.attn = aggregation
        self.norm2 = batch_norm()
        self.mlp = ChannelAggregation(WIDTH, 4 * WIDTH)

    def call(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def build(aggregation):
    """A network of one resolution."""
    image = keras.Input((32, 32, 3))
    x = HalvingConv(WIDTH, "gelu", name="stem")(image)
    for i in range(BLOCKS):
        x = MixingBlock(aggregation(WIDTH), name=f"block{i}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def main():
    options = arguments(__doc__)
    (xs, ys), test = digits(options.quick)
    data = (xs[:300], ys[:300]), test
    epochs, seeds = (1, 1) if options.quick else (15, options.seeds)
    print("| mixes pixels by | parameters | accuracy, % | of each run |\n|---|---|---|---|")
    for name, aggregation in (
        ("plain depthwise 5x5", PlainAggregation),
        ("multi-order gated aggregation", MultiOrderGatedAggregation),
    ):
        make = functools.partial(build, aggregation)
        runs = [accuracy(make, data, epochs, seed) for seed in range(seeds)]
        each = ", ".join(f"{run:.1f}" for run in runs)
        print(f"| {name} | {make().count_params()} | {np.mean(runs):.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
