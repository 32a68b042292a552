"""EMO's claim: attention inside the inverted residual is worth its parameters.

Two networks of the same plan and as many parameters: one attends in strided windows in its last two
stages, the other, an inverted residual without attention, spends the same on wider expansions.
"""

from __future__ import annotations

import keras
from common import accuracy, arguments, digits

from keras_convnets.applications.emo import emo, pre_pool

SIZE = 64
PLAN = dict(depths=(1, 1, 3, 2), widths=(12, 16, 24, 32), stem=12, window=2)


def network(head_sizes: tuple[int, int], late: float) -> keras.Model:
    """`late`: expansion of the last two stages."""
    image = keras.Input((SIZE, SIZE, 3))
    *_, x = emo(image, expansions=(2, 2, late, late), head_sizes=head_sizes, **PLAN)
    x = keras.layers.GlobalAveragePooling2D()(pre_pool(x))
    return keras.Model(image, keras.layers.Dense(10)(x))


def main() -> None:
    options = arguments(__doc__)
    data = digits(options.quick, SIZE)
    epochs, seeds = (1, 1) if options.quick else (8, options.seeds)
    wanted = network((8, 8), 2.0).count_params()
    wider = min(
        (2 + step / 12 for step in range(24)),
        key=lambda late: abs(network((0, 0), late).count_params() - wanted),
    )
    print("| block | parameters | accuracy on the digits, % |")
    print("|---|---|---|")
    for name, head_sizes, late in (
        ("with attention (EMO)", (8, 8), 2.0),
        ("without, wider", (0, 0), wider),
        ("without, as wide", (0, 0), 2.0),
    ):
        runs = [
            accuracy(lambda: network(head_sizes, late), data, epochs, seed)  # noqa: B023
            for seed in range(seeds)
        ]
        parameters = network(head_sizes, late).count_params()
        print(f"| {name} | {parameters:,} | {', '.join(f'{run:.1f}' for run in runs)} |")


if __name__ == "__main__":
    main()
