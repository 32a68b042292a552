"""Convolution along a sequence with kernels as long as it is.

    y[n, t, c] = sum over i of x[n, t - i, c] kernel[i, c] + x[n, t + 1 + i, c] backward[i, c]

with zeros outside of x, as a product of spectra. `"auto"` takes the route that measured faster for
that length (`fourier.json`). Two give the same numbers: `"fft"`, and
`"matmul"`, whose transform of N1 * N2 points is one of N1 points, a turn of each number, and one of
N2 points, both as matrix products: Fu et al. 2023 (FlashFFTConv, https://arxiv.org/abs/2311.05908,
section 3). Rows of zeros are left out of the first product and of the last, and of conjugate rows
one is computed.
"""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from keras_convnets.ops import _fourier
from keras_convnets.ops._depthwise_routes import wide
from keras_convnets.ops._dispatch import transform_route
from keras_convnets.ops._geometry import promote
from keras_convnets.ops.fourier import (
    RoutedOperation,
    apply,
    constant,
    mirrored,
    multiply,
    waves,
)


def fft_conv1d(x, kernel, backward=None, route="auto"):
    """Convolves each channel of a sequence with its own kernel, however long.

    Args:
        x: `(batch, length, channels)`, float, of known length.
        kernel: `(taps, channels)`, float: the weights of each step itself and those before it.
        backward: `(taps, channels)`, float: the weights of the steps after it, nearest first.
            Default: none, and then the convolution is causal.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Returns:
        A tensor shaped as `x`, of the type that the arguments promote to.

    Raises:
        ValueError: for shapes that do not fit each other, an unknown length, a non-float type, or
            another route.
    """
    tensors = [x, kernel] if backward is None else [x, kernel, backward]
    return apply(FFTConv1D(route), *tensors)


@keras.saving.register_keras_serializable(package="keras_convnets")
class FFTConv1D(RoutedOperation):
    """`fft_conv1d` as a node of a symbolic graph, called on `(x, kernel)` or with `backward`."""

    def compute_output_spec(self, x, kernel, backward=None):
        if len(x.shape) != 3 or not x.shape[1]:
            raise ValueError(
                "`x` must be (batch, length, channels) with a known length. Received: "
                f"x.shape={tuple(x.shape)}"
            )
        tensors = {"x": x, "kernel": kernel}
        if backward is not None:
            tensors["backward"] = backward
        for name in list(tensors)[1:]:
            shape = tuple(tensors[name].shape)
            if len(shape) != 2 or shape[1] != x.shape[2] or not shape[0]:
                raise ValueError(
                    f"`{name}` must be (taps, channels) with the channels of `x`. Received: "
                    f"{name}.shape={shape}, x.shape={tuple(x.shape)}"
                )
        return keras.KerasTensor(x.shape, promote(**tensors))

    def call(self, x, kernel, backward=None):
        spec = self.compute_output_spec(x, kernel, backward)
        length = x.shape[1]
        # Taps further away than the sequence is long meet zeros only.
        kernel = wide(kernel)[:length]
        backward = kernel[:0] if backward is None else wide(backward)[: length - 1]
        size = length + max(kernel.shape[0] - 1, backward.shape[0])
        route = self.route
        if route == "auto":
            route = transform_route(_fourier.platform(x), "sequence", length)
        convolve = _by_fft if route == "fft" else _by_products
        return ops.cast(convolve(wide(x), kernel, backward, size), spec.dtype)


def _circular(kernel, backward, size):
    """Both kernels as one of `size` taps, in which -1 is the last: `(1, size, channels)`."""
    ahead = kernel.shape[0]
    kernel = ops.pad(kernel, [(0, size - ahead - backward.shape[0]), (0, 0)])
    if backward.shape[0]:
        kernel = ops.concatenate([kernel, ops.flip(backward, 0)], 0)
    return kernel[None]


def _by_fft(x, kernel, backward, size):
    size = _fourier.fast_size(size)
    tensors = (x, _circular(kernel, backward, size))
    spectra = [ops.rfft(ops.transpose(t, (0, 2, 1)), fft_length=size) for t in tensors]
    y = ops.irfft(multiply(*spectra), fft_length=size)
    return ops.transpose(y[..., : x.shape[1]], (0, 2, 1))


def _by_products(x, kernel, backward, size):
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    length, channels = x.shape[1:]
    tensors = (x, _circular(kernel, backward, rows * columns))
    real, imaginary = multiply(*(_blocked(t, rows, columns) for t in tensors))
    cosine, sine = _twiddles(rows, columns, x)
    real, imaginary = multiply(_turn((real, imaginary), columns, 1), (cosine, sine))
    kept = -(-length // columns)
    half = rows // 2 + 1
    cosine, sine = waves(half, rows, kept)
    counts = mirrored(half, rows) / (rows * columns)
    matrix = np.concatenate([cosine * counts, -sine * counts]).T
    batch = ops.shape(x)[0]
    y = ops.concatenate([real, imaginary], 1)
    y = ops.matmul(constant(matrix, x), ops.reshape(y, (batch, 2 * half, columns * channels)))
    return ops.reshape(y, (batch, kept * columns, channels))[:, :length]


def _blocked(x, rows, columns):
    """Parts of the spectrum at frequency k1 + rows * k2: `(batch, rows // 2 + 1, columns, ...)`.

    Point n is at row n // columns. Rows of frequencies that are left out are conjugates of others.
    """
    batch, (length, channels) = ops.shape(x)[0], x.shape[1:]
    used = -(-length // columns)
    x = ops.pad(x, [(0, 0), (0, used * columns - length), (0, 0)])
    half = rows // 2 + 1
    cosine, sine = waves(half, rows, used)
    flat = ops.reshape(x, (batch, used, columns * channels))
    parts = [
        ops.reshape(ops.matmul(constant(wave, x), flat), (batch, half, columns, channels))
        for wave in (cosine, -sine)
    ]
    cosine, sine = _twiddles(rows, columns, x)
    return _turn(multiply(parts, (cosine, -sine)), columns, -1)


def _twiddles(rows, columns, like):
    return (
        constant(wave[..., None], like) for wave in waves(rows // 2 + 1, rows * columns, columns)
    )


def _turn(parts, size, sign):
    """The transform along axis 2 of a pair of parts: forward for -1, back, not scaled, for 1."""
    channels = parts[0].shape[3]
    both = ops.concatenate(parts, 3)
    even, odd = (ops.matmul(constant(wave, both), both) for wave in waves(size, size))
    real = even[..., :channels] - sign * odd[..., channels:]
    return real, even[..., channels:] + sign * odd[..., :channels]
