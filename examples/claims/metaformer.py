"""MetaFormers are good with any token mixer (arXiv 2111.11418, section 4; 2210.13452, table 1).

Five networks that differ in the token mixer only learn scikit-learn's digits.
"""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from common import accuracy, arguments, digits

from keras_convnets.layers import MetaFormerBlock

MIXERS = ("identity", "random", "pool", "attention", "separable")
WIDTHS, DEPTHS = (32, 64), (1, 2)


def network(mixer: str) -> keras.Model:
    """One block on maps of 8 x 8 pixels, two on maps of 4 x 4."""
    image = x = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(WIDTHS[0], 4, 4)(x)
    for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS)):
        if stage:
            x = keras.layers.Conv2D(width, 2, 2)(x)
        for _ in range(depth):
            x = MetaFormerBlock(width, mixer, "channels")(x)
    x = keras.layers.LayerNormalization()(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, keras.layers.Dense(10)(x))


def main() -> None:
    options = arguments(__doc__)
    data = digits(options.quick)
    epochs, seeds = (1, 1) if options.quick else (8, options.seeds)
    print(f"| token mixer | parameters | accuracy after {epochs} epochs |")
    print("|---|--:|--:|")
    for mixer in MIXERS:
        right = [accuracy(partial(network, mixer), data, epochs, seed) for seed in range(seeds)]
        spread = f"{np.mean(right):.1f} ± {np.std(right):.1f}"
        weights = network(mixer).trainable_weights
        count = sum(int(np.prod(weight.shape)) for weight in weights)
        print(f"| {mixer} | {count:,} | {spread} % |", flush=True)


if __name__ == "__main__":
    main()
