"""Weights of moved taps learn faster, and as much, without a softmax (arXiv 2401.06197, section 3).

Two networks that differ in the softmax only learn scikit-learn's digits, briefly and for longer.
"""

from __future__ import annotations

import time
from functools import partial

import keras
import numpy as np
from common import accuracy, arguments, digits
from keras import ops

from keras_convnets.layers import Block, DCNv4


class Bounded(DCNv4):
    """`DCNv4` with the softmax of `DCNv3`."""

    def call(self, x):
        packed = self.unpack(self.offset_mask(x)[..., : self.used])
        offset = self.unpack_offset(packed[..., : 2 * self.taps])
        mask = ops.softmax(packed[..., 2 * self.taps :])
        return self.project_out(self.aggregate([self.project_in(x), offset, mask]))


class Layer(Block):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, mixer: type, **kwargs):
        super().__init__(**kwargs)
        self.norm1 = keras.layers.LayerNormalization()
        self.mixer = mixer(width, groups=width // 16)
        self.norm2 = keras.layers.LayerNormalization()
        self.fc1 = keras.layers.Dense(2 * width, "gelu")
        self.fc2 = keras.layers.Dense(width)

    def call(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.fc2(self.fc1(self.norm2(x)))


def network(mixer: type) -> keras.Model:
    image = x = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(32, 4, 4)(x)
    x = Layer(32, mixer)(Layer(32, mixer)(x))
    x = keras.layers.LayerNormalization()(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, keras.layers.Dense(10)(x))


def milliseconds(model: keras.Model, images: np.ndarray) -> float:
    times = []
    for _ in range(12):
        start = time.perf_counter()
        ops.convert_to_numpy(model(images, training=False))
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[2:]))


def main() -> None:
    options = arguments(__doc__)
    data = digits(options.quick)
    lengths, seeds = ((1,), 1) if options.quick else ((2, 4, 8), options.seeds)
    print("| weights |", *(f"accuracy after {n} epochs |" for n in lengths), "32 images |")
    print("|---|" + "--:|" * (len(lengths) + 1))
    for name, mixer in (("softmax (DCNv3)", Bounded), ("unbounded (DCNv4)", DCNv4)):
        cells = []
        for n in lengths:
            right = [accuracy(partial(network, mixer), data, n, seed) for seed in range(seeds)]
            cells.append(f"{np.mean(right):.1f} ± {np.std(right):.1f} %")
        cells.append(f"{milliseconds(network(mixer), data[0][0][:32]):.1f} ms")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
