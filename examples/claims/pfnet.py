"""PfNet's claim (section 3): max pooling replaces depthwise convolutions at little loss."""

import functools
import time

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.applications.pfnet import PoolBottleneck
from keras_convnets.layers import ConvNormAct, DepthwiseConv2D

OPERATORS = {
    "max pooling": lambda block: block.pool,
    "depthwise convolution": lambda block: DepthwiseConv2D(3, block.pool.strides, use_bias=False),
    "nothing": lambda block: keras.layers.MaxPooling2D(1, block.pool.strides),
}


def network(size: int, operator) -> keras.Model:
    """Three stages of two bottlenecks, whose 3x3 operators are replaced."""
    image = keras.Input((size, size, 3))
    x = ConvNormAct(32, 3, activation="relu")(image)
    for stage, width in enumerate((64, 128, 256)):
        for i in range(2):
            block = PoolBottleneck(width, strides=2 if stage and i == 0 else 1, project=i == 0)
            block.pad = None
            block.pool = keras.layers.MaxPooling2D(3, block.pool.strides, padding="same")
            block.pool = operator(block)
            x = block(x)
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def milliseconds(model, images) -> float:
    """For a batch, the best of several."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        model.predict_on_batch(images)
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def main():
    options = arguments(__doc__)
    size, epochs = 8, 1 if options.quick else 8
    data = digits(options.quick, size)
    images = np.resize(data[1][0], (100, size, size, 3))
    print("| operator | parameters | accuracy | ms for 100 digits |\n|---|---|---|---|")
    for name, operator in OPERATORS.items():
        scores = [
            accuracy(functools.partial(network, size, operator), data, epochs, seed)
            for seed in range(1 if options.quick else options.seeds)
        ]
        model = network(size, operator)
        print(
            f"| {name} | {model.count_params():,} | {np.mean(scores):.2f} ± {np.std(scores):.2f} "
            f"| {milliseconds(model, images):.0f} |"
        )


if __name__ == "__main__":
    main()
