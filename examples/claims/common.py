"""What the scripts of this folder share: the digits, and one training run on them.

Each script checks a claim of one paper on a scale that a laptop manages in minutes, and prints what
docs/families says of it; `--quick` runs the same code on next to nothing.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_convnets.graph import count


def arguments(description: str) -> argparse.Namespace:
    """`quick` and `seeds`, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="on little data, for the tests")
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each model")
    return parser.parse_args()


def digits(quick: bool = False, size: int = 32):
    """`(train images, train labels), (test images, test labels)`: scikit-learn's scanned digits as
    float32 `(count, size, size, 3)`, about zero."""
    data = load_digits()
    images = np.repeat(data.images[..., None].astype("float32") / 8 - 1, 3, axis=-1)
    images = np.asarray(keras.ops.convert_to_numpy(keras.ops.image.resize(images, (size, size))))
    xs, xt, ys, yt = train_test_split(
        images, data.target, test_size=0.3, random_state=0, stratify=data.target
    )
    return ((xs[:32], ys[:32]), (xt[:32], yt[:32])) if quick else ((xs, ys), (xt, yt))


def accuracy(build, data, epochs: int, seed: int, rate: float = 2e-3) -> float:
    """Percent of the test digits that `build()`, a model with 10 logits, gets right once trained
    with AdamW and a falling learning rate."""
    keras.utils.set_random_seed(seed)
    (xs, ys), (xt, yt) = data
    model, batch = build(), 32
    steps = epochs * -(-len(xs) // batch)
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(rate, steps), 0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(xs, ys, batch, epochs, verbose=0)
    return 100 * float((model.predict(xt, 128, verbose=0).argmax(-1) == yt).mean())


def compare_mixers(
    what: str, build: Callable, mixers: Sequence[tuple], options, epochs: int
) -> None:
    """Prints a table of networks that differ in one part.

    Args:
        what: the part.
        build: makes the network from a function, which the table names, and a width.
        mixers: pairs of these.
        options: from `arguments`.
        epochs: of each training.
    """
    data = digits(options.quick)
    epochs, seeds = (1, 1) if options.quick else (epochs, options.seeds)
    print(f"| {what} | width | parameters | MACs, M | accuracy, % | deviation over seeds |")
    print("|---|---|---|---|---|---|")
    for mixer, width in mixers:
        make = functools.partial(build, mixer, width)
        scores = [accuracy(make, data, epochs, seed) for seed in range(seeds)]
        model = make()
        print(
            f"| {mixer.__name__} | {width} | {model.count_params():,} "
            f"| {count(model).macs / 1e6:.2f} | {np.mean(scores):.2f} | {np.std(scores):.2f} |",
            flush=True,
        )
