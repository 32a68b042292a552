"""Filters made and applied by frequency."""

from __future__ import annotations

import numpy as np
from keras import ops

from keras_convnets.ops._depthwise_routes import wide


def frequency_groups(rows: int, columns: int, count: int) -> np.ndarray:
    """Which of `count` groups of equal size each frequency of a real transform is in, lowest first.

    Returns: int32, `(rows, columns // 2 + 1)`. Of equal frequencies the first rows come first.

    Raises:
        ValueError: if `count` does not divide the number of frequencies, or `columns` is odd.
    """
    size = rows * (columns // 2 + 1)
    if columns % 2 or size % count:
        raise ValueError(
            f"The columns must be even, and count={count} must divide the {size} frequencies. "
            f"Received: rows={rows}, columns={columns}"
        )
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    group = np.empty(size, "int32")
    group[np.argsort(frequency.ravel(), kind="stable")] = np.arange(size) // (size // count)
    return group.reshape(frequency.shape)


def weighted_spectrum(spectrum, groups, weights):
    """For each example the matrix whose spectrum is `spectrum`, each group times a weight.

    Chen et al. 2025 (FDConv, https://arxiv.org/abs/2503.18783, section 3.2): kernels that differ in
    frequency, mixed, at the cost in parameters of one.

    Args:
        spectrum: `(rows, columns // 2 + 1, 2)`, float: real and imaginary part, of a transform
            that is not scaled; `columns` is even.
        groups: `(rows, columns // 2 + 1)`, int: the group of each frequency.
        weights: `(batch, count)`, float.

    Returns:
        `(batch, rows, columns)`, of the type of `spectrum`.

    Raises:
        ValueError: for shapes that do not fit each other.
    """
    if len(spectrum.shape) != 3 or spectrum.shape[2] != 2 or len(weights.shape) != 2:
        raise ValueError(
            "`spectrum` must be (rows, columns // 2 + 1, 2) and `weights` (batch, count). "
            f"Received: spectrum.shape={tuple(spectrum.shape)}, "
            f"weights.shape={tuple(weights.shape)}"
        )
    if tuple(groups.shape) != tuple(spectrum.shape[:2]):
        raise ValueError(
            "`groups` must have the shape of `spectrum` without its last axis. Received: "
            f"groups.shape={tuple(groups.shape)}, spectrum.shape={tuple(spectrum.shape)}"
        )
    rows, columns = spectrum.shape[0], 2 * (spectrum.shape[1] - 1)
    factors = ops.take(wide(weights), groups, axis=1)
    # Transposed, for the transform over rows comes first, and ops.fft takes the last axis. The
    # inverse is the transform of the conjugate, conjugated.
    real, imaginary = (
        ops.transpose(factors * wide(spectrum)[..., part], (0, 2, 1)) for part in (0, 1)
    )
    real, imaginary = ops.fft((real, -imaginary))
    parts = [ops.transpose(part / rows, (0, 2, 1)) for part in (real, -imaginary)]
    return ops.cast(ops.irfft(tuple(parts), fft_length=columns), spectrum.dtype)


def frequency_bands(x, divisors=(2, 4, 8)):
    """Splits a map into bands that sum to it, at frequencies of 0.5 / d cycles a pixel for each d.

    Chen et al. 2025 (FDConv, https://arxiv.org/abs/2503.18783, section 3.4): the larger of the
    vertical and horizontal frequency counts, on a grid of 64 from which each size takes the
    nearest.

    Args:
        x: `(batch, height, width, channels)`, float; height and width must be known.
        divisors: growing ints.

    Raises:
        ValueError: for another rank or unknown sizes.

    Returns:
        A list of `len(divisors) + 1` maps shaped as `x`, of its type, highest frequencies first.
    """
    if len(x.shape) != 4 or None in tuple(x.shape[1:3]):
        raise ValueError(
            "`x` must be (batch, height, width, channels) with known height and width. Received: "
            f"x.shape={tuple(x.shape)}"
        )
    height, width = x.shape[1:3]
    image = ops.transpose(wide(x), (0, 3, 1, 2))
    real, imaginary = ops.rfft(image)
    real, imaginary = ops.fft(_turned(real, imaginary))  # now (..., horizontal, vertical)
    vertical, horizontal = np.abs(np.fft.fftfreq(64)), np.fft.rfftfreq(64)
    bands, above = [], image
    for divisor in divisors:
        # Rounded, this keeps the frequency 1/8 and 1/16, but not 1/4: published weights expect it.
        limit = np.float32(0.5 / divisor + 1e-8)
        kept = [
            ops.take(ops.cast(f < limit, real.dtype), _nearest(size, len(f)))
            for f, size in ((horizontal, width // 2 + 1), (vertical, height))
        ]
        mask = ops.expand_dims(kept[0], 1) * kept[1]
        low = ops.fft((real * mask, -imaginary * mask))
        low = ops.irfft(_turned(low[0] / height, -low[1] / height), fft_length=width)
        bands.append(above - low)
        above = low
    return [ops.cast(ops.transpose(b, (0, 2, 3, 1)), x.dtype) for b in [*bands, above]]


def _turned(*parts):
    return tuple(ops.swapaxes(part, -1, -2) for part in parts)


def _nearest(size, of):
    return ops.arange(size, dtype="int32") * of // size
