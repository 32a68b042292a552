"""Filters as large as the map, by its Fourier transform.

    y[n, p, q, c] = sum over i, j of x[n, (p - i) mod height, (q - j) mod width, c] kernel[i, j, c]

is a product of spectra. Spectra are pairs of real tensors, which every backend and LiteRT can
compute with. Two routes give the same numbers: `"fft"`, and `"matmul"`, which multiplies by the
matrices of the transform: more work, (height + width) products a pixel, but made of products only,
for LiteRT, which lacks transforms of maps, and for matrix units. `"auto"` takes what measured
faster for that size (`fourier.json`), and `"fft"` for sizes that are not known.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.ops import _fourier
from keras_convnets.ops._depthwise_routes import wide
from keras_convnets.ops._dispatch import transform_route
from keras_convnets.ops._geometry import check_axes, promote

ROUTES = ("auto", "fft", "matmul")


def rfft2(x, route="auto"):
    """The spectrum of a real map, scaled by 1 / sqrt(height * width): the transform is unitary.

    Args:
        x: `(batch, height, width, channels)`, float.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Returns:
        The real and the imaginary part, `(batch, height, width // 2 + 1, channels)` each: float32,
        or float64 for a float64 map.

    Raises:
        ValueError: for another rank, a non-float type, another route, or sizes that are not known
            where the route is `"matmul"`.
    """
    return apply(RFFT2(route), x)


def irfft2(real, imaginary, width, route="auto"):
    """The real map of a spectrum: the inverse of `rfft2`.

    Args:
        real, imaginary: `(batch, height, width // 2 + 1, channels)`, float.
        width: of the map: the spectra of even and odd ones are equally wide.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Returns:
        `(batch, height, width, channels)`, of the parts' type.

    Raises:
        ValueError: as for `rfft2`, and for parts whose shapes do not fit.
    """
    return apply(IRFFT2(width, route), real, imaginary)


def fft_conv2d(x, kernel, route="auto"):
    """Circular convolution of each channel with a kernel up to as large as the map.

    It is a convolution and no correlation: `kernel[0, 0]` is the weight of the pixel itself, and
    `kernel[i, j]` that of the pixel i above and j to the left, or where that is outside, of the one
    that many from the other side.

    Args:
        x: `(batch, height, width, channels)`, float, of known height and width.
        kernel: `(kernel_height, kernel_width, channels)`, or one for each example with the batch
            as first axis; float.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Returns:
        A tensor shaped as `x`, of the type that `x` and `kernel` promote to.

    Raises:
        ValueError: for shapes that do not fit each other, a kernel larger than the map, a non-float
            type, unknown sizes, or another route.
    """
    return apply(FFTConv2D(route), x, kernel)


def filter_spectrum(x, spectrum, route="auto"):
    """`irfft2` of `rfft2` times a filter that is given as a spectrum.

    Rao et al. 2021 (GFNet, https://arxiv.org/abs/2107.00645, section 3.2).

    Args:
        x: `(batch, height, width, channels)`, float.
        spectrum: `(height, width // 2 + 1, channels, 2)`, float: real and imaginary part.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Returns:
        A tensor shaped as `x`, of the type that `x` and `spectrum` promote to.

    Raises:
        ValueError: for shapes that do not fit each other, a non-float type, another route, or sizes
            that are not known where the route is `"matmul"`.
    """
    return apply(FilterSpectrum(route), x, spectrum)


def apply(operation, *tensors):
    if any(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        return operation.symbolic_call(*tensors)
    return operation.call(*(ops.convert_to_tensor(tensor) for tensor in tensors))


class RoutedOperation(keras.Operation):
    """The base: `by_products()` is the same operation by the route of matrix products."""

    def __init__(self, route="auto", name=None):
        super().__init__(name=name)
        if route not in ROUTES:
            raise ValueError(f"`route` must be one of {ROUTES}. Received: {route!r}")
        self.route = route

    def by_products(self, input_shape):
        return type(self).from_config(self.get_config() | {"route": "matmul"})


class _Transform(RoutedOperation):
    """The base of those that take a map."""

    def check_map(self, name, x):
        check_axes(name, x.shape, "(batch, height, width, channels)")
        if self.route == "matmul" and None in tuple(x.shape[1:3]):
            raise ValueError(
                f'`{name}` must have a known height and width for the route "matmul". Received: '
                f"{name}.shape={tuple(x.shape)}"
            )


@keras.saving.register_keras_serializable(package="keras_convnets")
class RFFT2(_Transform):
    """`rfft2` as a node of a symbolic graph."""

    def compute_output_spec(self, x):
        self.check_map("x", x)
        dtype = "float64" if promote(x=x) == "float64" else "float32"
        batch, height, width, channels = x.shape
        half = None if width is None else width // 2 + 1
        return tuple(keras.KerasTensor((batch, height, half, channels), dtype) for _ in range(2))

    def call(self, x):
        self.compute_output_spec(x)
        return transform(wide(x), self.route, unitary=True)


@keras.saving.register_keras_serializable(package="keras_convnets")
class IRFFT2(_Transform):
    """`irfft2` as a node of a symbolic graph, called on `(real, imaginary)`."""

    def __init__(self, width, route="auto", name=None):
        super().__init__(route, name=name)
        self.width = width

    def compute_output_spec(self, real, imaginary):
        self.check_map("real", real)
        batch, height, half, channels = real.shape
        batches = {batch, *imaginary.shape[:1]} - {None}
        same = len(batches) < 2 and tuple(imaginary.shape[1:]) == tuple(real.shape[1:])
        if not same or half != self.width // 2 + 1:
            raise ValueError(
                "`real` and `imaginary` must be (batch, height, width // 2 + 1, channels) both. "
                f"Received: real.shape={tuple(real.shape)}, "
                f"imaginary.shape={tuple(imaginary.shape)}, width={self.width}"
            )
        dtype = promote(real=real, imaginary=imaginary)
        return keras.KerasTensor((batch, height, self.width, channels), dtype)

    def call(self, real, imaginary):
        dtype = self.compute_output_spec(real, imaginary).dtype
        y = inverse((wide(real), wide(imaginary)), self.width, self.route, unitary=True)
        return ops.cast(y, dtype)


@keras.saving.register_keras_serializable(package="keras_convnets")
class FFTConv2D(_Transform):
    """`fft_conv2d` as a node of a symbolic graph, called on `(x, kernel)`."""

    def compute_output_spec(self, x, kernel):
        self.check_map("x", x)
        *_, channels = x.shape
        shape = tuple(kernel.shape)
        fits = (
            len(shape) in (3, 4)
            and shape[-1] == channels
            and None not in (*x.shape[1:3], *shape[-3:])
            and 0 not in shape[-3:]
            and shape[-3] <= x.shape[1]
            and shape[-2] <= x.shape[2]
            and (len(shape) == 3 or None in (shape[0], x.shape[0]) or shape[0] == x.shape[0])
        )
        if not fits:
            raise ValueError(
                "`kernel` must be (kernel_height, kernel_width, channels), with the batch before "
                "that for one per example, have the channels of `x` and be at most as large, and "
                "the height and width of `x` must be known. Received: "
                f"kernel.shape={shape}, x.shape={tuple(x.shape)}"
            )
        return keras.KerasTensor(x.shape, promote(x=x, kernel=kernel))

    def call(self, x, kernel):
        spec = self.compute_output_spec(x, kernel)
        if len(kernel.shape) == 3:
            kernel = kernel[None]
        zeros = [(0, size - taps) for size, taps in zip(x.shape[1:3], kernel.shape[1:3])]
        kernel = ops.pad(wide(kernel), [(0, 0), *zeros, (0, 0)])
        product = multiply(transform(wide(x), self.route), transform(kernel, self.route))
        return ops.cast(inverse(product, x.shape[2], self.route), spec.dtype)


@keras.saving.register_keras_serializable(package="keras_convnets")
class FilterSpectrum(_Transform):
    """`filter_spectrum` as a node of a symbolic graph, called on `(x, spectrum)`."""

    def compute_output_spec(self, x, spectrum):
        self.check_map("x", x)
        _, height, width, channels = x.shape
        expected = (height, None if width is None else width // 2 + 1, channels, 2)
        shape = tuple(spectrum.shape)
        if len(shape) != 4 or any(e not in (None, s) for e, s in zip(expected, shape)):
            raise ValueError(
                "`spectrum` must be (height, width // 2 + 1, channels, 2) of the map `x`. "
                f"Received: spectrum.shape={shape}, x.shape={tuple(x.shape)}"
            )
        return keras.KerasTensor(x.shape, promote(x=x, spectrum=spectrum))

    def call(self, x, spectrum):
        spec = self.compute_output_spec(x, spectrum)
        spectrum = wide(spectrum)
        product = multiply(transform(wide(x), self.route), (spectrum[..., 0], spectrum[..., 1]))
        return ops.cast(inverse(product, ops.shape(x)[2], self.route), spec.dtype)


def multiply(a, b):
    """The product of two pairs of a real and an imaginary part."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def transform(x, route, unitary=False):
    """The pair of parts of the spectrum of a float32 or float64 map, scaled only if `unitary`."""
    height, width = ops.shape(x)[1:3]
    if resolve(route, x, height, width) == "fft":
        spectrum = _fourier.rfft2(ops.transpose(x, (0, 3, 1, 2)), (height, width))
        parts = [ops.transpose(f(spectrum), (0, 2, 3, 1)) for f in (ops.real, ops.imag)]
    else:
        half = width // 2 + 1
        cosine, sine = waves(half, width)
        parts = ops.matmul(constant(np.concatenate([cosine, -sine]), x), x)
        parts = _turn_rows((parts[:, :, :half], parts[:, :, half:]), -1)
    return tuple(_scaled(part, height, width) if unitary else part for part in parts)


def inverse(parts, width, route, unitary=False):
    """The map of a spectrum that `transform` made."""
    height = ops.shape(parts[0])[1]
    if resolve(route, parts[0], height, width) == "fft":
        spectrum = _fourier.join(*(ops.transpose(part, (0, 3, 1, 2)) for part in parts))
        y = ops.transpose(_fourier.irfft2(spectrum, (height, width)), (0, 2, 3, 1))
    else:
        half = width // 2 + 1
        cosine, sine = waves(half, width)
        # The other half of the spectrum is the conjugate of this one without its ends.
        counts = mirrored(half, width) / (height * width)
        matrix = np.concatenate([cosine * counts, -sine * counts]).T
        rows = ops.concatenate(_turn_rows(parts, 1), 2)
        y = ops.matmul(constant(matrix, rows), rows)
    return y / _scaled(ops.ones((), y.dtype), height, width) if unitary else y


def resolve(route, x, height, width):
    """What `"auto"` stands for with a map of this size."""
    if route != "auto":
        return route
    if not (isinstance(height, int) and isinstance(width, int)):
        return "fft"
    return transform_route(_fourier.platform(x), "map", (height * width) ** 0.5)


def waves(count, size, length=None):
    """cos and sin of 2 pi k n / size, for the first `count` k and the first `length` n."""
    # Whole turns are left out first: large angles have few digits.
    turns = np.outer(np.arange(count), np.arange(length or size)) % size / size
    return np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)


def mirrored(count, size):
    """How often each of the first `count` of `size` frequencies counts: 2, but 1 if it is its own
    mirror image. A column."""
    frequency = np.arange(count)[:, None]
    return np.where(frequency == -frequency % size, 1.0, 2.0)


def constant(array, like):
    return ops.convert_to_tensor(array, like.dtype)


def _turn_rows(parts, sign):
    """The transform along axis 1 of a pair of parts: forward for -1, back, not scaled, for 1."""
    batch, (height, half, channels) = ops.shape(parts[0])[0], parts[0].shape[1:]
    flat = ops.reshape(ops.concatenate(parts, 2), (batch, height, 2 * half * channels))
    even, odd = (
        ops.reshape(ops.matmul(constant(wave, flat), flat), (batch, height, 2 * half, channels))
        for wave in waves(height, height)
    )
    real = even[:, :, :half] - sign * odd[:, :, half:]
    return real, even[:, :, half:] + sign * odd[:, :, :half]


def _scaled(part, height, width):
    """Divided by the root of the number of pixels, which may be the backend's own integer."""
    return part * ops.rsqrt(ops.cast(height * width, part.dtype))
