"""Weights that anyone can draw again from the names of a state dict alone."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

SCALES = ("weight", "gamma", "scale", "g")


def seeded_state(
    shapes: Mapping[str, tuple[int, ...]], gain: float = 1.0, multipliers: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Random weights, non-zero biases and uneven BatchNorm statistics, the same for the same key.

    Each entry has a generator of its own, seeded by its key. Variances lie in [0.5, 1.5), means
    have deviation 0.2, scales lie in [0.8, 1.2), biases have deviation 0.1, and arrays of two or
    more axes have deviation `gain / sqrt(fan_in)`, the first axis being the outputs. Batch counters
    are zero.

    Args:
        shapes: shape of each entry by published name.
        gain: factor of the entries with two or more axes.
        multipliers: last parts of names of one-dimensional entries that are multipliers too.
    """
    state = {}
    for key, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(key.encode()))
        last = key.rpartition(".")[2]
        if last == "num_batches_tracked":
            state[key] = np.zeros(shape, "int64")
            continue
        if last == "running_var":
            value = 0.5 + random.rand(*shape)
        elif last == "running_mean":
            value = 0.2 * random.randn(*shape)
        elif len(shape) >= 2:
            value = random.randn(*shape) * gain / np.sqrt(np.prod(shape[1:]))
        elif last in SCALES or last in multipliers:
            value = 0.8 + 0.4 * random.rand(*shape)
        else:
            value = 0.1 * random.randn(*shape)
        state[key] = np.asarray(value, "float32")
    return state
