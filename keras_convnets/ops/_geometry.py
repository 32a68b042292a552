"""Sizes of a sliding window, and the errors when there are none."""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import ops

FLOATS = ("float16", "bfloat16", "float32", "float64")


def pair(value, name, least):
    """An int or two of them as a tuple of two, or a ValueError that names the argument."""
    values = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(values, list | tuple)
        or len(values) != 2
        or not all(isinstance(v, int) and v >= least for v in values)
    ):
        raise ValueError(
            f"`{name}` must be an int or a pair of ints, each at least {least}. Received: {value!r}"
        )
    return tuple(values)


def resolve_padding(padding):
    """`"same"`, `"valid"` or a tuple `(vertical, horizontal)`."""
    if isinstance(padding, str):
        if padding in ("same", "valid"):
            return padding
        raise ValueError(
            f'`padding` must be "same", "valid", an int or a pair of ints. Received: {padding!r}'
        )
    return pair(padding, "padding", 0)


def promote(**tensors):
    """The type that the named tensors promote to, or a ValueError for one that is no float."""
    dtypes = {n: keras.backend.standardize_dtype(tensor.dtype) for n, tensor in tensors.items()}
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise ValueError(
                f"`{name}` must be of a float type ({', '.join(FLOATS)}); cast it first. "
                f"Received: {name}.dtype={dtype}"
            )
    return keras.backend.result_type(*dtypes.values())


def check_axes(name, shape, axes, known=0):
    """A ValueError that names the tensor unless it has these axes and, but for a batch, none empty.

    `axes`: such as `"(batch, length, channels)"`, of which the last `known` must not be `None`.
    """
    shape, count = tuple(shape), len(axes.strip("(,)").split(","))
    first = int(axes.startswith("(batch"))
    if len(shape) != count or 0 in shape[first:] or None in shape[count - known :]:
        sizes = f", the last {known} known" if known else ""
        raise ValueError(
            f"`{name}` must be {axes}, no axis empty{sizes}. Received: {name}.shape={shape}"
        )


def check_groups(name, x_shape, filters, groups):
    """A ValueError that names the layer unless the groups divide what they are to."""
    channels = x_shape[-1]
    if channels is None or channels % groups or filters % groups:
        raise ValueError(
            f"{name}: groups={groups} must divide filters={filters} and the channels of the input. "
            f"Received: input_shape={tuple(x_shape)}"
        )


def output_shape(x_shape, kernel_shape, strides, padding, dilation_rate):
    """The output's shape, `None` where the input's is, after checking that one exists."""
    check_axes("x", x_shape, "(batch, height, width, channels)")
    check_axes("kernel", kernel_shape, "(kernel_height, kernel_width, channels, 1)")
    if tuple(kernel_shape[2:]) != (x_shape[3], 1) or None in tuple(kernel_shape[:2]):
        raise ValueError(
            "`kernel` must be (kernel_height, kernel_width, channels, 1) with the channels of `x` "
            f"and known sides. Received: kernel.shape={tuple(kernel_shape)}, "
            f"x.shape={tuple(x_shape)}"
        )
    batch, *sizes, channels = x_shape
    spatial = []
    for axis, (size, kernel, stride, rate) in enumerate(
        zip(sizes, kernel_shape, strides, dilation_rate)
    ):
        reach = (kernel - 1) * rate + 1
        if size is None:
            spatial.append(None)
        elif padding == "same":
            spatial.append(-(-size // stride))
        else:
            zeros = 0 if padding == "valid" else 2 * padding[axis]
            if size + zeros < reach:
                raise ValueError(
                    f"A kernel of {kernel} taps, {rate} apart, reaches over {reach} pixels, but "
                    f"axis {axis + 1} of `x` has {size} and {zeros} of padding. Pad more or use a "
                    f"smaller kernel. Received: x.shape={tuple(x_shape)}, "
                    f"kernel.shape={tuple(kernel_shape)}, padding={padding!r}"
                )
            spatial.append((size + zeros - reach) // stride + 1)
    return (batch, *spatial, channels)


def zeros_around(sizes, kernel_size, strides, padding, dilation_rate):
    """Zeros that make the convolution a "valid" one: `((top, bottom), (left, right))`.

    Sizes may be the backend's own symbolic integers.
    """
    widths = []
    for axis, (size, kernel, stride, rate) in enumerate(
        zip(sizes, kernel_size, strides, dilation_rate)
    ):
        reach = (kernel - 1) * rate + 1
        if padding == "valid":
            widths.append((0, 0))
        elif padding != "same":
            widths.append((padding[axis], padding[axis]))
        else:
            if stride == 1:  # independent of the size, which may be unknown
                total = reach - 1
            elif isinstance(size, int):
                total = max(reach - 1 - (size - 1) % stride, 0)
            else:
                total = ops.maximum(reach - 1 - (size - 1) % stride, 0)
            widths.append((total // 2, total - total // 2))
    return tuple(widths)


@dataclass(frozen=True)
class Window:
    """A convolution along one axis, all sizes known: output `o` reads `o*stride + i*rate - before`.

    `size`, `kernel` and `output` count input pixels, taps and outputs; `before` counts the zeros in
    front of the input and may be negative, which skips pixels.
    """

    size: int
    kernel: int
    stride: int
    rate: int
    before: int
    output: int

    @property
    def reach(self):
        return (self.kernel - 1) * self.rate + 1

    @property
    def span(self):
        """Pixels that are read, zeros included."""
        return (self.output - 1) * self.stride + self.reach

    @property
    def after(self):
        """Zeros behind the input; negative where the last pixels are not read."""
        return self.span - self.size - self.before

    @property
    def useful_taps(self):
        """The taps that meet a pixel at some output, as a slice; none at all gives the first."""
        first = -(-(self.before - (self.output - 1) * self.stride) // self.rate)
        last = (self.size - 1 + self.before) // self.rate
        first = min(max(first, 0), self.kernel - 1)
        return slice(first, max(min(last, self.kernel - 1), first) + 1)

    def with_taps(self, taps):
        before = self.before - taps.start * self.rate
        return Window(
            self.size, taps.stop - taps.start, self.stride, self.rate, before, self.output
        )

    @property
    def adjoint(self):
        """The input's gradient: over the gradient with stride - 1 zeros between, kernel flipped."""
        size = (self.output - 1) * self.stride + 1
        return Window(size, self.kernel, 1, self.rate, self.reach - 1 - self.before, self.size)


def windows(x_shape, kernel_shape, strides, padding, dilation_rate):
    """The vertical and the horizontal `Window` of a convolution."""
    sizes, kernels = x_shape[1:3], kernel_shape[:2]
    outputs = output_shape(x_shape, kernel_shape, strides, padding, dilation_rate)[1:3]
    befores = [b for b, _ in zeros_around(sizes, kernels, strides, padding, dilation_rate)]
    return tuple(
        Window(int(size), int(kernel), stride, rate, int(before), int(output))
        for size, kernel, stride, rate, before, output in zip(
            sizes, kernels, strides, dilation_rate, befores, outputs
        )
    )
