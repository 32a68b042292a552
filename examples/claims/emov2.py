"""EMOv2's claim: near and distant positions at once are better than distant ones alone.

Both kinds of windows use the same queries, keys and values, so that the two networks have the same
parameters.
"""

from __future__ import annotations

import keras
from common import accuracy, arguments, digits

from keras_convnets.applications.emov2 import emov2, pre_pool

SIZE = 64
PLAN = dict(
    depths=(1, 1, 3, 2),
    widths=(16, 16, 24, 32),
    expansions=(2, 2, 2, 2),
    head_sizes=(8, 8),
    window=2,
)


def network(reach: str) -> keras.Model:
    image = keras.Input((SIZE, SIZE, 3))
    *_, x = emov2(image, reach=reach, **PLAN)
    x = keras.layers.GlobalAveragePooling2D()(pre_pool(x))
    model = keras.Model(image, keras.layers.Dense(10)(x))
    for layer in model._flatten_layers():
        if hasattr(layer, "init_value"):  # blocks that start as nothing learn little in minutes
            layer.gamma.assign(keras.ops.full_like(layer.gamma, 1.0))
    return model


def main() -> None:
    options = arguments(__doc__)
    data = digits(options.quick, SIZE)
    epochs, seeds = (1, 1) if options.quick else (8, options.seeds)
    print("| windows | parameters | accuracy on the digits, % |")
    print("|---|---|---|")
    for name, reach in (("strided and contiguous (EMOv2)", "both"), ("strided (EMO)", "remote")):
        runs = [
            accuracy(lambda: network(reach), data, epochs, seed)  # noqa: B023
            for seed in range(seeds)
        ]
        parameters = network(reach).count_params()
        print(f"| {name} | {parameters:,} | {', '.join(f'{run:.1f}' for run in runs)} |")


if __name__ == "__main__":
    main()
