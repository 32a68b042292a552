"""SimpleNet's claim: plain convolutions outperform deeper, more complex networks of their size."""

import functools
import time

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.applications.simplenet import CIFAR_310K, simplenet
from keras_convnets.applications.wide_resnet import wide_resnet

# SimpleNet's slim layout and pre-activation ResNets, in two sizes.
NETWORKS = [
    ("SimpleNet", lambda image: simplenet(image, CIFAR_310K[:3], scale=0.71)),
    ("ResNet-10", lambda image: wide_resnet(image, depth=10, factor=1)),
    ("SimpleNet", lambda image: simplenet(image, CIFAR_310K[:3], scale=1.075)),
    ("ResNet-16", lambda image: wide_resnet(image, depth=16, factor=1)),
]


def network(levels, size: int, pool) -> keras.Model:
    """The maps of a family function's last level, pooled and classified."""
    image = keras.Input((size, size, 3))
    *_, x = levels(image)
    return keras.Model(image, keras.layers.Dense(10)(pool()(x)))


def main():
    options = arguments(__doc__)
    size, epochs = 8, 1 if options.quick else 8
    data = digits(options.quick, size)
    print("| network | parameters | accuracy | ms for 100 digits |\n|---|---|---|---|")
    for name, levels in NETWORKS[:2] if options.quick else NETWORKS:
        largest = keras.layers.GlobalMaxPooling2D
        pool = largest if name == "SimpleNet" else keras.layers.GlobalAveragePooling2D
        scores = [
            accuracy(functools.partial(network, levels, size, pool), data, epochs, seed)
            for seed in range(1 if options.quick else options.seeds)
        ]
        model = network(levels, size, pool)
        images = np.resize(data[1][0], (100, size, size, 3))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            model.predict_on_batch(images)
            times.append(1000 * (time.perf_counter() - start))
        print(
            f"| {name} | {model.count_params():,} | {np.mean(scores):.2f} ± {np.std(scores):.2f} "
            f"| {min(times):.0f} |"
        )


if __name__ == "__main__":
    main()
