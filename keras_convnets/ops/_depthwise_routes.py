"""Ways to compute a depthwise convolution and its gradients, for sizes that are all known.

`x` is (batch, height, width, channels), `kernel` (kernel_height, kernel_width, channels); `rows`
and `columns` are the `Window` along each axis.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.ops import _fourier as fourier

# XLA stops fusing longer sums into one loop, and each term then makes a pass over memory.
MOST_TERMS = 121
# Terms per step of the loop over the output gradient: enough to amortise the step.
TERMS_PER_STEP = 28


def fit(x, befores, afters):
    """Pads axes 1 and 2 with zeros; negative widths cut."""
    kept = [slice(max(-before, 0), min(after, 0) or None) for before, after in zip(befores, afters)]
    zeros = [(max(before, 0), max(after, 0)) for before, after in zip(befores, afters)]
    x = x[:, kept[0], kept[1]]
    if zeros == [(0, 0), (0, 0)]:
        return x
    return ops.pad(x, [(0, 0), *zeros, *[(0, 0)] * (len(x.shape) - 3)])


def spread(x, strides):
    """`x` with stride - 1 zeros between its pixels."""
    if strides == (1, 1):
        return x
    batch, (height, width, channels) = ops.shape(x)[0], x.shape[1:]
    (sy, sx) = strides
    x = ops.reshape(x, (batch, height, 1, width, 1, channels))
    x = ops.pad(x, [(0, 0), (0, 0), (0, sy - 1), (0, 0), (0, sx - 1), (0, 0)])
    x = ops.reshape(x, (batch, height * sy, width * sx, channels))
    return x[:, : (height - 1) * sy + 1, : (width - 1) * sx + 1]


def every(start, count, step):
    """`count` indices from `start`, `step` apart."""
    return slice(start, start + (count - 1) * step + 1, step)


def padded(x, rows, columns):
    return fit(x, (rows.before, columns.before), (rows.after, columns.after))


def sum_of_shifts(image, terms, rows, columns):
    """The sum over terms (top, left, factor) of `image`, from there on, times the factor."""
    total = 0.0
    for top, left, factor in terms:
        vertical = every(top, rows.output, rows.stride)
        horizontal = every(left, columns.output, columns.stride)
        total = total + image[:, vertical, horizontal] * factor
    return total


def image_by_image(compute, x, rows, columns, in_place=False):
    """`compute` of each image of `x`, as (1, height, width, channels), in a loop.

    Not for its own sake: XLA fuses a bare sum into everything that reads it, which then computes it
    again, value by value: a normalisation for each of its statistics. A loop of one step XLA would
    open, so how many there are it is not to know: as many as images, and a number that is 0.

    `in_place`: that outputs as large as the images may take their places.
    """
    batch, sizes = ops.shape(x)[0], x.shape[1:]
    in_place = in_place and (rows.output, columns.output) == tuple(sizes[:2])

    def add_image(i, y):
        image = ops.slice(y if in_place else x, (i, 0, 0, 0), (1, *sizes))
        return ops.slice_update(y, (i, 0, 0, 0), compute(image))

    y = x if in_place else ops.zeros((batch, rows.output, columns.output, sizes[-1]), x.dtype)
    if keras.backend.backend() != "torch":  # whose compiler wants to know
        first = ops.sum(x[:1, 0, 0, 0])
        batch += ops.cast(ops.logical_and(first != first, first == first), "int32")
    return ops.fori_loop(0, batch, add_image, y)


def shifted(x, kernel, rows, columns):
    """A term for each tap: the image, shifted, times the tap."""
    terms = [
        (i * rows.rate, j * columns.rate, kernel[i, j])
        for i in range(rows.kernel)
        for j in range(columns.kernel)
    ]

    def compute(image):  # padded in the loop: XLA takes three times longer otherwise
        return sum_of_shifts(padded(image, rows, columns), terms, rows, columns)

    # Fresh memory for so much costs as much as the sums: where `x` is read by others as well, XLA
    # copies it, which takes no longer than to fill with zeros.
    return image_by_image(compute, x, rows, columns, in_place=True)


def swapped(x, kernel, rows, columns):
    """A term for each pixel: the flipped kernel, shifted, times the pixel. For small maps."""
    kernel = ops.flip(kernel, (0, 1))[None]
    kernel = spread(kernel, (rows.rate, columns.rate))
    # Output o takes from pixel h the tap at h + before - o*stride, which flipping puts at
    # reach - 1 - before - h + o*stride; the padding makes that index positive for the last pixel.
    y_start, y_more = _reach_of_taps(rows)
    x_start, x_more = _reach_of_taps(columns)
    kernel = fit(kernel, (y_start, x_start), (y_more, x_more))

    def terms_of(image):
        return [
            (rows.size - 1 - h, columns.size - 1 - w, image[:, h : h + 1, w : w + 1])
            for h in range(rows.size)
            for w in range(columns.size)
        ]

    def compute(image):
        return sum_of_shifts(kernel, terms_of(image), rows, columns)

    return image_by_image(compute, x, rows, columns)


def _reach_of_taps(window):
    before = window.size - 1 - (window.reach - 1 - window.before)
    length = window.size + (window.output - 1) * window.stride
    return before, length - before - window.reach


def fft(x, kernel, rows, columns):
    """A product of spectra."""
    sizes = _transform_sizes(rows, columns)
    spectrum = fourier.rfft2(ops.transpose(x, (0, 3, 1, 2)), sizes)
    y = fourier.irfft2(spectrum * fourier.conj(_spectrum(kernel, rows, columns, sizes)), sizes)
    y = ops.roll(y, (rows.before, columns.before), (2, 3))
    y = y[:, :, every(0, rows.output, rows.stride), every(0, columns.output, columns.stride)]
    return ops.transpose(y, (0, 2, 3, 1))


def _spectrum(kernel, rows, columns, sizes):
    kernel = spread(kernel[None], (rows.rate, columns.rate))[0]
    return fourier.rfft2(ops.transpose(kernel, (2, 0, 1)), sizes)


def _transform_sizes(*axes):
    """Long enough that what wraps around meets zeros only."""
    return [
        fourier.fast_size(
            max(
                window.size + max(window.before, window.after, 0),
                window.reach,
                (window.output - 1) * window.stride + 1,
            )
        )
        for window in axes
    ]


def kernel_gradient_rows(x, gradient, rows, columns):
    """A term for each output pixel, looping over blocks of them, all images at once."""
    x = padded(x, rows, columns)
    steps_across = -(-columns.output // TERMS_PER_STEP)
    width = -(-columns.output // steps_across)
    steps_down = -(-rows.output // max(1, TERMS_PER_STEP // width))
    height = -(-rows.output // steps_down)
    more_rows = steps_down * height - rows.output
    more_columns = steps_across * width - columns.output
    gradient = fit(gradient, (0, 0), (more_rows, more_columns))
    x = fit(x, (0, 0), (more_rows * rows.stride, more_columns * columns.stride))
    batch, channels = ops.shape(x)[0], x.shape[3]
    block = (
        batch,
        (height - 1) * rows.stride + rows.reach,
        (width - 1) * columns.stride + columns.reach,
        channels,
    )

    def add_block(step, total):
        top, left = (step // steps_across) * height, (step % steps_across) * width
        pixels = ops.slice(x, (0, top * rows.stride, left * columns.stride, 0), block)
        weights = ops.slice(gradient, (0, top, left, 0), (batch, height, width, channels))
        for p in range(height):
            for q in range(width):
                total += (
                    pixels[
                        :,
                        every(p * rows.stride, rows.kernel, rows.rate),
                        every(q * columns.stride, columns.kernel, columns.rate),
                    ]
                    * weights[:, p : p + 1, q : q + 1]
                )
        return total

    total = ops.zeros((batch, rows.kernel, columns.kernel, channels), x.dtype)
    return ops.sum(ops.fori_loop(0, steps_down * steps_across, add_block, total), 0)


def kernel_gradient_fft(x, gradient, rows, columns):
    """A product of spectra, summed over the images."""
    sizes = _transform_sizes(rows, columns)
    gradient = spread(gradient, (rows.stride, columns.stride))
    spectrum = fourier.rfft2(ops.transpose(x, (0, 3, 1, 2)), sizes)
    spectrum *= fourier.conj(fourier.rfft2(ops.transpose(gradient, (0, 3, 1, 2)), sizes))
    kernel = fourier.irfft2(ops.sum(spectrum, 0), sizes)
    kernel = ops.roll(kernel, (rows.before, columns.before), (1, 2))
    kernel = kernel[:, every(0, rows.kernel, rows.rate), every(0, columns.kernel, columns.rate)]
    return ops.transpose(kernel, (1, 2, 0))


FORWARD = {"shifted": shifted, "swapped": swapped, "fft": fft}
KERNEL_GRADIENT = {"rows": kernel_gradient_rows, "fft": kernel_gradient_fft}


def forward(compute, x, kernel, rows, columns):
    """The convolution by one of the functions above, in float32 or more, without useless taps."""
    vertical, horizontal = rows.useful_taps, columns.useful_taps
    kernel = kernel[vertical, horizontal, :, 0]
    rows, columns = rows.with_taps(vertical), columns.with_taps(horizontal)
    return ops.cast(compute(wide(x), wide(kernel), rows, columns), x.dtype)


def input_gradient(compute, gradient, kernel, rows, columns):
    """The gradient of `x`: a convolution with the flipped kernel."""
    gradient = spread(gradient, (rows.stride, columns.stride))
    return forward(compute, gradient, ops.flip(kernel, (0, 1)), rows.adjoint, columns.adjoint)


def kernel_gradient(compute, x, gradient, rows, columns):
    """The gradient of `kernel`, zero for useless taps, in float32 or more."""
    taps = rows.useful_taps, columns.useful_taps
    windows = [window.with_taps(t) for window, t in zip((rows, columns), taps)]
    kernel = compute(wide(x), wide(gradient), *windows)[..., None]
    zeros = [(t.start, window.kernel - t.stop) for window, t in zip((rows, columns), taps)]
    return ops.cast(ops.pad(kernel, [*zeros, (0, 0), (0, 0)]), x.dtype)


def wide(x):
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")
