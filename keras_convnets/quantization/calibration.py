"""From the activations on calibration images to the ranges that they are rounded to."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.deploy.export import outputs_of

LEVELS = 256
BATCH = 32
BINS = 8192
SHARE = 1e-4  # of the values, beyond each end of the range of "percentile"
# Ends of a range that "mse" tries, as shares of the extremes: steps of 4%, and none.
SHARES = np.array([*2.0 ** (-np.arange(128) / 16), 0.0])
# As Migacz: a narrower range would have fewer bins than levels, and no divergence to see.
KL_SHARES = SHARES[SHARES * BINS >= LEVELS]
ROUNDS = 2


def extremes(graph: keras.Model, tensors: list, images: np.ndarray) -> np.ndarray:
    """The smallest and largest value of each tensor of a graph over all images: `(count, 2)`."""
    measuring = keras.Model(graph.input, [ops.stack([ops.min(y), ops.max(y)]) for y in tensors])
    batches = [outputs_of(measuring, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    pairs = np.array(batches)
    return np.stack([pairs[..., 0].min(0), pairs[..., 1].max(0)], axis=-1)


def narrowed(
    graph: keras.Model, tensors: list, images: np.ndarray, limits: np.ndarray, method: str
) -> np.ndarray:
    """The ranges that a method chooses within the extremes `limits` of tensors: `(count, 2)`.

    Held in memory are one batch of activations and a histogram of each tensor, in which zeros do
    not count: every range has them exactly.
    """
    limits = np.stack([np.minimum(limits[:, 0], 0), np.maximum(limits[:, 1], 0)], axis=-1)
    measuring = keras.Model(graph.input, tensors)
    counts = np.zeros((len(tensors), BINS), "int64")
    for start in range(0, len(images), BATCH):
        outputs = outputs_of(measuring, images[start : start + BATCH])
        for total, y, ends in zip(counts, outputs, limits, strict=True):
            total += np.histogram(y[y != 0], BINS, ends)[0]
    choose = METHODS[method]
    return np.array([choose(total, *ends) for total, ends in zip(counts, limits, strict=True)])


def by_percentile(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The range that 0.01% of the values are below and 0.01% above (Wu et al. 2020)."""
    edges = np.linspace(low, high, BINS + 1)
    below = np.concatenate([[0], np.cumsum(counts)])
    cut = SHARE * below[-1]
    first = edges[np.searchsorted(below, cut, side="right") - 1]
    last = edges[np.searchsorted(below, below[-1] - cut)]
    return min(first, 0.0), max(last, 0.0)


def by_error(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The range of least squared error (Nagel et al. 2021, section 3.1): one end after the other
    takes its best place."""
    filled = counts > 0
    counts, centers = counts[filled], _centers(low, high)[filled]

    def error(ends):
        if ends[0] == ends[1]:
            return np.inf
        return (counts * (rounded(centers, *ends) - centers) ** 2).sum()

    best = low, high
    for _ in range(ROUNDS):
        best = min([(best[0], end) for end in dict.fromkeys(high * SHARES)], key=error)
        best = min([(end, best[1]) for end in dict.fromkeys(low * SHARES)], key=error)
    return best


def rounded(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """What `layers.FakeQuant` makes of values, given its range."""
    step = (high - low) / (LEVELS - 1)
    zero = np.round(-low / step)
    return np.clip(np.round(x / step), -zero, LEVELS - 1 - zero) * step


def by_divergence(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The range in which rounding loses least information (Migacz 2017): of those that are cut off
    at a threshold on both sides, the one with the least Kullback-Leibler divergence."""
    reach = max(-low, high)
    ranges = [(max(low, -t), min(high, t)) for t in reach * KL_SHARES]
    divergences = [_divergence(counts, low, high, ends) for ends in ranges]
    return ranges[int(np.argmin(divergences))]


def _divergence(counts, low, high, ends):
    """Of the clipped distribution from the rounded one, whose levels spread what they hold evenly
    over the bins that are not empty."""
    centers = _centers(low, high)
    inside = (centers >= ends[0]) & (centers <= ends[1]) & (counts > 0)
    held = counts[inside].astype("float64")
    if not len(held):
        return np.inf
    levels = np.round((centers[inside] - ends[0]) / (ends[1] - ends[0]) * (LEVELS - 1)).astype(int)
    means = np.bincount(levels, held) / np.maximum(np.bincount(levels), 1)
    spread = means[levels] / held.sum()
    total, clipped = counts.sum(), held
    clipped[0] += counts[centers < ends[0]].sum()
    clipped[-1] += counts[centers > ends[1]].sum()
    clipped /= clipped.sum()
    # Counts vary by chance within a level: that alone gives this much on average (Miller 1955).
    chance = (len(held) - len(np.unique(levels))) / (2 * total)
    return float((clipped * np.log(clipped / spread)).sum()) - chance


def _centers(low, high):
    return low + (np.arange(BINS) + 0.5) * ((high - low) / BINS)


METHODS = {
    "min_max": None,
    "percentile": by_percentile,
    "mse": by_error,
    "kl": by_divergence,
}
OF_EIGHT_BITS = ("mse", "kl")
