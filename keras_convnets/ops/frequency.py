"""Filters made and applied by frequency."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.ops._depthwise_routes import wide
from keras_convnets.ops._geometry import check_axes, promote
from keras_convnets.ops.fourier import RoutedOperation, apply, constant, inverse, transform


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


def weighted_spectrum(spectrum, groups, weights, route="fft"):
    """For each example the matrix whose spectrum is `spectrum`, each group times a weight.

    Chen et al. 2025 (FDConv, https://arxiv.org/abs/2503.18783, section 3.2): kernels that differ in
    frequency, mixed, at the cost in parameters of one.

    Args:
        spectrum: `(rows, columns // 2 + 1, 2)`, float: real and imaginary part, of a transform
            that is not scaled; `columns` is even.
        groups: `(rows, columns // 2 + 1)`, int: the group of each frequency.
        weights: `(batch, count)`, float.
        route: `"auto"`, `"fft"` or `"matmul"`, see `ops.fourier`.

    Returns:
        `(batch, rows, columns)`, of the type of `spectrum`.

    Raises:
        ValueError: for shapes that do not fit each other or a non-float type.
    """
    return apply(WeightedSpectrum(route), spectrum, groups, weights)


def frequency_bands(x, divisors=(2, 4, 8), route="fft"):
    """Splits a map into bands that sum to it, at frequencies of 0.5 / d cycles a pixel for each d.

    Chen et al. 2025 (FDConv, https://arxiv.org/abs/2503.18783, section 3.4): the larger of the
    vertical and horizontal frequency counts, on a grid of 64 from which each size takes the
    nearest.

    Args:
        x: `(batch, height, width, channels)`, float; height and width must be known.
        divisors: growing ints.
        route: `"auto"`, `"fft"` or `"matmul"`, see `ops.fourier`.

    Raises:
        ValueError: for another rank, unknown sizes or a non-float type.

    Returns:
        A list of `len(divisors) + 1` maps shaped as `x`, of its type, highest frequencies first.
    """
    return apply(FrequencyBands(divisors, route), x)


@keras.saving.register_keras_serializable(package="keras_convnets")
class WeightedSpectrum(RoutedOperation):
    """`weighted_spectrum` as a node of a symbolic graph, called on its tensors."""

    def compute_output_spec(self, spectrum, groups, weights):
        check_axes("spectrum", spectrum.shape, "(rows, columns // 2 + 1, 2)", 3)
        check_axes("weights", weights.shape, "(batch, count)", 1)
        if spectrum.shape[1] < 2 or spectrum.shape[2] != 2:
            raise ValueError(
                "`spectrum` must be (rows, columns // 2 + 1, 2) of at least 2 columns. Received: "
                f"spectrum.shape={tuple(spectrum.shape)}"
            )
        if tuple(groups.shape) != tuple(spectrum.shape[:2]):
            raise ValueError(
                "`groups` must have the shape of `spectrum` without its last axis. Received: "
                f"groups.shape={tuple(groups.shape)}, spectrum.shape={tuple(spectrum.shape)}"
            )
        promote(spectrum=spectrum, weights=weights)
        rows, half, _ = spectrum.shape
        return keras.KerasTensor((weights.shape[0], rows, 2 * half - 2), spectrum.dtype)

    def call(self, spectrum, groups, weights):
        spec = self.compute_output_spec(spectrum, groups, weights)
        factors = ops.take(wide(weights), groups, axis=1)
        parts = [ops.expand_dims(factors * wide(spectrum)[..., part], -1) for part in (0, 1)]
        return ops.cast(inverse(parts, spec.shape[2], self.route)[..., 0], spec.dtype)


@keras.saving.register_keras_serializable(package="keras_convnets")
class FrequencyBands(RoutedOperation):
    """`frequency_bands` as a node of a symbolic graph, called on the map."""

    def __init__(self, divisors=(2, 4, 8), route="fft", name=None):
        super().__init__(route, name=name)
        self.divisors = tuple(divisors)

    def compute_output_spec(self, x):
        promote(x=x)
        if len(x.shape) != 4 or 0 in tuple(x.shape[1:]) or None in tuple(x.shape[1:3]):
            raise ValueError(
                "`x` must be (batch, height, width, channels) with known height and width. "
                f"Received: x.shape={tuple(x.shape)}"
            )
        return [keras.KerasTensor(x.shape, x.dtype) for _ in range(len(self.divisors) + 1)]

    def call(self, x):
        self.compute_output_spec(x)
        height, width = x.shape[1:3]
        spectrum = transform(wide(x), self.route)
        vertical, horizontal = np.abs(np.fft.fftfreq(64)), np.fft.rfftfreq(64)
        bands, above = [], wide(x)
        for divisor in self.divisors:
            # Rounded, this keeps the frequency 1/8 and 1/16, but not 1/4: published weights expect
            # it.
            limit = np.float32(0.5 / divisor + 1e-8)
            kept = [
                (f < limit)[np.arange(size) * len(f) // size]
                for f, size in ((vertical, height), (horizontal, width // 2 + 1))
            ]
            mask = constant(np.multiply.outer(*kept)[..., None], above)
            low = inverse([part * mask for part in spectrum], width, self.route)
            bands.append(above - low)
            above = low
        return [ops.cast(band, x.dtype) for band in [*bands, above]]
