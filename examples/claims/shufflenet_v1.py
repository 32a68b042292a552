"""ShuffleNet V1's claim (section 4.1.2): the more groups, the more the shuffle is worth."""

import functools

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.applications.shufflenet_v1 import GroupedShuffleUnit
from keras_convnets.layers import ConvNormAct

WIDTHS, DEPTH = (96, 192), 2


def network(size: int, groups: int, shuffled: bool) -> keras.Model:
    """Two stages of units between a convolution and a classifier; all 1x1 ones have groups."""
    image = keras.Input((size, size, 3))
    x = ConvNormAct(24, 3, activation="relu")(image)
    for width in WIDTHS:
        for i in range(DEPTH):
            unit = GroupedShuffleUnit(x.shape[-1], width, groups, strides=2 if i == 0 else 1)
            if not shuffled:
                unit.shuffle = keras.layers.Identity()
            x = unit(x)
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def main():
    options = arguments(__doc__)
    size, epochs = 8, 1 if options.quick else 8
    data = digits(options.quick, size)
    print("| groups | parameters | with shuffle | without | difference |\n|---|---|---|---|---|")
    for groups in (3, 8):
        scores = np.array(
            [
                [
                    accuracy(functools.partial(network, size, groups, shuffled), data, epochs, seed)
                    for shuffled in (True, False)
                ]
                for seed in range(1 if options.quick else options.seeds)
            ]
        )
        mean, deviation = scores.mean(0), scores.std(0)
        parameters = network(size, groups, True).count_params()
        cells = [f"{m:.2f} ± {d:.2f}" for m, d in zip(mean, deviation)]
        print(f"| {groups} | {parameters:,} | {' | '.join(cells)} | {mean[0] - mean[1]:+.2f} |")


if __name__ == "__main__":
    main()
