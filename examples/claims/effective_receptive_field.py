"""Large kernels see wide without going deep: which pixels the middle of the last map depends on.

The positive gradients of the middle of the last map for the pixels, summed over images and
channels, and the smallest centred square that has a share of them: Ding et al. 2022 (RepLKNet,
https://arxiv.org/abs/2203.06717), appendix; figure 1 of Ding et al. 2024 (UniRepLKNet). Weights are
random here, with each branch of its full strength and BatchNorm's statistics those of the images.
"""

from __future__ import annotations

from pathlib import Path

import keras
import matplotlib
import numpy as np
from common import arguments

from keras_convnets.applications.base import create_model
from keras_convnets.graph import reparameterize
from keras_convnets.layers import LayerScale
from keras_convnets.testing.conformance import photographs, settle_statistics

NAMES = ("resnet50", "resnet101", "replknet_31b", "unireplknet_t")
SHARES = (0.2, 0.3, 0.5, 0.99)
PICTURE = Path(__file__).parents[2] / "docs/families/effective_receptive_field.png"


def gradient(function, x):
    """Of a function's sum, as NumPy."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            x = tf.Variable(x)
            y = function(x)
        return tape.gradient(y, x).numpy()
    x = keras.ops.convert_to_tensor(x).requires_grad_(True)
    function(x).backward()
    return x.grad.cpu().numpy()


def contributions(name: str, images: np.ndarray) -> np.ndarray:
    """Of each pixel to the middle of the last map, the largest 1."""
    keras.utils.set_random_seed(0)
    model = create_model(name, weights=None, include_top=False, input_shape=images.shape[1:])
    for layer in model._flatten_layers():
        if isinstance(layer, LayerScale | keras.layers.BatchNormalization):
            layer.gamma.assign(keras.ops.ones_like(layer.gamma))
    settle_statistics(model, images)
    model = reparameterize(model)
    row, column = (side // 2 for side in model.output.shape[1:3])
    found = [
        gradient(lambda x: keras.ops.sum(model(x, training=False)[:, row, column]), image[None])
        for image in images
    ]
    total = np.maximum(np.concatenate(found), 0).sum((0, 3))
    return total / total.max()


def side_of(share: float, total: np.ndarray) -> float:
    """Side of the smallest centred square with a share of all contributions, in percent."""
    middle = len(total) // 2
    for half in range(1, middle + 1):
        inside = total[middle - half : middle + half, middle - half : middle + half]
        if inside.sum() >= share * total.sum():
            break
    return 100 * half / middle


def main() -> dict[str, list[float]]:
    quick = arguments(__doc__.splitlines()[0]).quick
    names = ("resnet_test", "unireplknet_test") if quick else NAMES
    images = photographs(*((2, 64) if quick else (8, 384)))
    totals = {name: contributions(name, images) for name in names}
    rows = {name: [side_of(share, total) for share in SHARES] for name, total in totals.items()}
    print("| side of the square with a share of | " + " | ".join(f"{s:.0%}" for s in SHARES) + " |")
    print("|---" * (1 + len(SHARES)) + "|")
    for name, sides in rows.items():
        print(f"| {name} | " + " | ".join(f"{side:.1f}%" for side in sides) + " |")
    if not quick:
        draw(totals)
    return rows


def draw(totals: dict[str, np.ndarray]) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(totals), figsize=(3 * len(totals), 3.3), squeeze=False)
    for axis, (name, total) in zip(axes[0], totals.items()):
        axis.imshow(np.maximum(total, 1e-4), norm="log", cmap="magma", vmin=1e-4)
        axis.set_title(name)
        axis.axis("off")
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
