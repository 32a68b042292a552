"""Deformable convolution: every tap of every output reads the map where an offset moved it.

    s[n, p, q, g, t] = x of group g, bilinear, at (p*s + i*d - top, q*s + j*d - left) + offset
    y[n, p, q] = sum over t, g of kernel[t] (mask * s)[t, g]        (deform_conv2d)
    y[n, p, q, g] = sum over t of (mask * s)[g, t]                  (deform_aggregate)

with zeros outside of x, tap t = (i, j) counted row by row, and offsets (vertical, horizontal) in
pixels. Between pixels the derivative is that of the bilinear surface; on a pixel, the one towards
larger coordinates.

These are the operators of DCN (arXiv 1703.06211, equation 2), DCNv2 (arXiv 1811.11168, equation 1),
DCNv3 (InternImage, arXiv 2211.05778, equation 2: masks are a softmax over the taps) and DCNv4
(arXiv 2401.06197: they are not).
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.ops._depthwise_routes import wide
from keras_convnets.ops._geometry import (
    check_axes,
    output_shape,
    pair,
    promote,
    resolve_padding,
    zeros_around,
)


def deform_conv2d(x, offset, kernel, mask=None, strides=1, padding="same", dilation_rate=1):
    """Convolution whose taps are moved by `offset` and scaled by `mask`.

    Args:
        x: `(batch, height, width, channels)`, float.
        offset: `(batch, out_height, out_width, offset_groups, taps, 2)`, float: how far each tap
            moves down and to the right, in pixels. `taps` is `kernel_height * kernel_width`, row by
            row, and `offset_groups` divides the channels: those of a group move together.
        kernel: `(kernel_height, kernel_width, channels / groups, filters)`, float.
        mask: `(batch, out_height, out_width, offset_groups, taps)`, float, or `None` for ones.
        strides, padding, dilation_rate: as in `depthwise_conv2d`.

    Returns:
        `(batch, out_height, out_width, filters)`, of the type that all arguments promote to.

    Raises:
        ValueError: for shapes that do not fit each other, a non-float type, or sizes that are none.
    """
    operation = DeformConv2DOperation(strides, padding, dilation_rate)
    if any(isinstance(t, keras.KerasTensor) for t in (x, offset, kernel, mask)):
        return operation.symbolic_call(x, offset, kernel, mask)
    return operation.call(x, offset, kernel, mask)


def deform_aggregate(
    x,
    offset,
    mask,
    kernel_size,
    strides=1,
    padding="same",
    dilation_rate=1,
    remove_center=False,
):
    """Sums, for each group of channels, the moved taps times their `mask`.

    Args:
        x: `(batch, height, width, channels)`, float.
        offset: `(batch, out_height, out_width, groups, taps, 2)`, float, as in `deform_conv2d`.
        mask: `(batch, out_height, out_width, groups, taps)`, float.
        kernel_size: int or `(height, width)`; `taps` is their product.
        strides, padding, dilation_rate: as in `depthwise_conv2d`.
        remove_center: whether the tap in the middle of an odd kernel is left out, so that there is
            one tap less.

    Returns:
        `(batch, out_height, out_width, channels)`, of the type that all arguments promote to.

    Raises:
        ValueError: as `deform_conv2d`, and for an even kernel whose centre is to be removed.
    """
    operation = DeformAggregate(kernel_size, strides, padding, dilation_rate, remove_center)
    if any(isinstance(t, keras.KerasTensor) for t in (x, offset, mask)):
        return operation.symbolic_call(x, offset, mask)
    return operation.call(x, offset, mask)


@keras.saving.register_keras_serializable(package="keras_convnets")
class DeformConv2DOperation(keras.Operation):
    """`deform_conv2d` in a symbolic graph, called on `(x, offset, kernel, mask)`."""

    def __init__(self, strides=1, padding="same", dilation_rate=1, name=None):
        super().__init__(name=name)
        self.strides = pair(strides, "strides", 1)
        self.padding = resolve_padding(padding)
        self.dilation_rate = pair(dilation_rate, "dilation_rate", 1)

    def compute_output_spec(self, x, offset, kernel, mask=None):
        shape = self._taps(kernel).check(x.shape, offset.shape, _shape(mask))
        self._check_kernel(x.shape, kernel.shape)
        return keras.KerasTensor((*shape[:3], kernel.shape[3]), _dtype(x, offset, mask, kernel))

    def call(self, x, offset, kernel, mask=None):
        x, offset, kernel = (ops.convert_to_tensor(t) for t in (x, offset, kernel))
        mask = None if mask is None else ops.convert_to_tensor(mask)
        spec = self.compute_output_spec(x, offset, kernel, mask)
        samples, weights = self._taps(kernel).corners(wide(x), wide(offset), mask)
        columns = _weigh(samples, weights)
        batch, height, width, _, taps, _ = ops.shape(columns)
        members, filters = kernel.shape[2:]
        groups = x.shape[3] // members
        columns = ops.transpose(columns, (0, 1, 2, 4, 3, 5))
        columns = ops.reshape(columns, (batch, height, width, taps, groups, members))
        kernel = ops.reshape(wide(kernel), (taps, members, groups, filters // groups))
        y = ops.einsum("nhwtgc,tcgf->nhwgf", columns, kernel)
        return ops.cast(ops.reshape(y, (batch, height, width, filters)), spec.dtype)

    def _taps(self, kernel):
        axes = "(kernel_height, kernel_width, channels / groups, filters)"
        check_axes("kernel", kernel.shape, axes, 4)
        return MovedTaps(kernel.shape[:2], self.strides, self.padding, self.dilation_rate)

    def _check_kernel(self, x_shape, kernel_shape):
        channels, (members, filters) = x_shape[3], kernel_shape[2:]
        if channels % members or filters % (channels // members):
            raise ValueError(
                "`kernel` must be (kernel_height, kernel_width, channels / groups, filters), where "
                "a number of groups divides the channels of `x` and the filters. Received: "
                f"kernel.shape={tuple(kernel_shape)}, x.shape={tuple(x_shape)}"
            )


@keras.saving.register_keras_serializable(package="keras_convnets")
class DeformAggregate(keras.Operation):
    """`deform_aggregate` in a symbolic graph; same arguments, called on `(x, offset, mask)`."""

    def __init__(
        self,
        kernel_size,
        strides=1,
        padding="same",
        dilation_rate=1,
        remove_center=False,
        name=None,
    ):
        super().__init__(name=name)
        self.taps = MovedTaps(
            pair(kernel_size, "kernel_size", 1),
            pair(strides, "strides", 1),
            resolve_padding(padding),
            pair(dilation_rate, "dilation_rate", 1),
            remove_center,
        )

    def compute_output_spec(self, x, offset, mask):
        shape = self.taps.check(x.shape, offset.shape, mask.shape)
        return keras.KerasTensor(shape, _dtype(x, offset, mask))

    def call(self, x, offset, mask):
        x, offset, mask = (ops.convert_to_tensor(t) for t in (x, offset, mask))
        spec = self.compute_output_spec(x, offset, mask)
        samples, weights = self.taps.corners(wide(x), wide(offset), mask)
        batch, height, width, groups, taps, corners, members = ops.shape(samples)
        # Of three axes: LiteRT multiplies no matrices of six.
        samples = ops.reshape(samples, (batch * height * width * groups, taps * corners, members))
        y = ops.matmul(ops.reshape(weights, (-1, 1, taps * corners)), samples)
        return ops.cast(ops.reshape(y, (batch, height, width, x.shape[3])), spec.dtype)


class MovedTaps:
    """Where the taps of a kernel read; arguments are pairs, already checked."""

    def __init__(self, kernel_size, strides, padding, dilation_rate, remove_center=False):
        self.kernel_size, self.strides = kernel_size, strides
        self.padding, self.dilation_rate = padding, dilation_rate
        tap = np.stack(np.indices(kernel_size), -1).reshape(-1, 2)
        if remove_center:
            if not kernel_size[0] % 2 == kernel_size[1] % 2 == 1:
                raise ValueError(
                    "`remove_center` needs a kernel with a centre, of odd sides. Received: "
                    f"kernel_size={kernel_size}"
                )
            tap = np.delete(tap, len(tap) // 2, 0)
        self.places = tap * dilation_rate

    def check(self, x_shape, offset_shape, mask_shape):
        """The shape of an output with the channels of `x`."""
        check_axes("x", x_shape, "(batch, height, width, channels)", 1)
        kernel_shape = (*self.kernel_size, x_shape[-1], 1)
        shape = output_shape(x_shape, kernel_shape, self.strides, self.padding, self.dilation_rate)
        expected = (*shape[:3], None, len(self.places), 2)
        if not _fits(offset_shape, expected):
            raise ValueError(
                "`offset` must be (batch, out_height, out_width, groups, taps, 2), here "
                f"{_named(expected)}. Received: offset.shape={tuple(offset_shape)}, "
                f"x.shape={tuple(x_shape)}, kernel_size={tuple(self.kernel_size)}"
            )
        groups = offset_shape[3]
        if not groups or shape[3] % groups:
            raise ValueError(
                "The groups of `offset` must be known and divide the channels of `x`. Received: "
                f"offset.shape={tuple(offset_shape)}, x.shape={tuple(x_shape)}"
            )
        expected = (*expected[:3], groups, len(self.places))
        if mask_shape is not None and not _fits(mask_shape, expected):
            raise ValueError(
                "`mask` must have the shape of `offset` without its last axis, here "
                f"{_named(expected)}. Received: mask.shape={tuple(mask_shape)}, "
                f"offset.shape={tuple(offset_shape)}"
            )
        return shape

    def corners(self, x, offset, mask):
        """The four pixels around each tap, and their bilinear weights times the mask.

        Returns: `(batch, out_height, out_width, groups, taps, 4, channels / groups)`, and the same
        without the last axis.
        """
        batch, height, width = ops.shape(x)[:3]
        groups = offset.shape[3]
        members = x.shape[3] // groups
        zeros = zeros_around(
            (height, width), self.kernel_size, self.strides, self.padding, self.dilation_rate
        )
        top, down = _split(self._positions(offset, 0, zeros[0][0]), height)
        left, right = _split(self._positions(offset, 1, zeros[1][0]), width)
        # Two rings of zeros: what lies outside has its four corners there, and needs no mask.
        rings = ((0, 0), (2, 2), (2, 2), (0, 0))
        table = ops.reshape(ops.pad(x, rings), (batch, height + 4, width + 4, groups, members))
        # A row holds all four corners, so that a tap is one read and its gradient one addition.
        table = ops.concatenate(
            [table[:, :-1, :-1], table[:, :-1, 1:], table[:, 1:, :-1], table[:, 1:, 1:]], -1
        )
        image = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1, 1, 1))
        group = ops.convert_to_tensor(np.arange(groups, dtype="int32")[:, None])
        row = ((image * (height + 3) + top) * (width + 3) + left) * groups + group
        samples = ops.take(ops.reshape(table, (-1, 4 * members)), row, axis=0)
        samples = ops.reshape(samples, (*ops.shape(row), 4, members))
        up, before = 1 - down, 1 - right
        weights = ops.stack([up * before, up * right, down * before, down * right], -1)
        return samples, weights if mask is None else weights * wide(mask)[..., None]

    def _positions(self, offset, axis, before):
        """Each tap's coordinate along an axis: `(batch, out_height, out_width, groups, taps)`."""
        outputs = ops.shape(offset)[1 + axis]
        first = ops.arange(outputs, dtype="int32") * self.strides[axis] - before
        first = ops.reshape(ops.cast(first, offset.dtype), (1, -1, *([1] * (3 - axis))))
        places = ops.convert_to_tensor(self.places[:, axis], offset.dtype)
        return offset[..., axis] + first + places


def _split(position, size):
    """The pixel before a position, counted from two before the first, and the distance to it."""
    whole = ops.floor(position)
    return ops.clip(ops.cast(whole, "int32"), -2, size) + 2, position - ops.stop_gradient(whole)


def _weigh(samples, weights):
    """The sum over the four corners."""
    if keras.backend.backend() == "torch":  # a third faster there than its batched product
        return ops.sum(weights[..., None] * samples, -2)
    *shape, corners, members = ops.shape(samples)
    samples = ops.reshape(samples, (-1, corners, members))
    y = ops.matmul(ops.reshape(weights, (-1, 1, corners)), samples)
    return ops.reshape(y, (*shape, members))


def _shape(mask):
    return None if mask is None else mask.shape


def _fits(shape, expected):
    return len(shape) == len(expected) and all(
        e is None or given in (e, None) for given, e in zip(shape, expected)
    )


def _named(shape):
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _dtype(x, offset, mask, kernel=None):
    tensors = {"x": x, "offset": offset, "mask": mask, "kernel": kernel}
    return promote(**{name: t for name, t in tensors.items() if t is not None})
