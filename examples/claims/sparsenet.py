"""SparseNet's claim (section 4): the accuracy of DenseNet with fewer parameters."""

import functools

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.applications.sparsenet import sparsenet

# At each depth a DenseNet, and SparseNets whose layers add more channels each.
NETWORKS = [
    ("DenseNet", dict(depth=6, growths=(8, 8, 8), dense=True)),
    ("SparseNet", dict(depth=6, growths=(8, 8, 8))),
    ("SparseNet", dict(depth=6, growths=(11, 11, 11))),
    ("DenseNet", dict(depth=12, growths=(8, 8, 8), dense=True)),
    ("SparseNet", dict(depth=12, growths=(8, 8, 8))),
    ("SparseNet", dict(depth=12, growths=(12, 12, 12))),
]


def network(size: int, **sizes) -> keras.Model:
    image = keras.Input((size, size, 3))
    *_, x = sparsenet(image, stem_width=16, **sizes)
    x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def main():
    options = arguments(__doc__)
    size, epochs = 8, 1 if options.quick else 5
    data = digits(options.quick, size)
    print("| network | layers a stage | growth | parameters | accuracy |\n|---|---|---|---|---|")
    for name, sizes in NETWORKS[:2] if options.quick else NETWORKS:
        scores = [
            accuracy(functools.partial(network, size, **sizes), data, epochs, seed)
            for seed in range(1 if options.quick else options.seeds)
        ]
        parameters = network(size, **sizes).count_params()
        print(
            f"| {name} | {sizes['depth']} | {sizes['growths'][0]} | {parameters:,} "
            f"| {np.mean(scores):.2f} ± {np.std(scores):.2f} |"
        )


if __name__ == "__main__":
    main()
