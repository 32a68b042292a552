"""Aggregation over a neighbourhood with weights of its own at every position, and its scores.

    y[b, p, q, c] = sum over t of weights[b, p, q, group of c, t] x[b, row(p, t), column(q, t), c]
    s[b, p, q, g, t] = sum over c in g of query[b, p, q, c] key[b, row(p, t), column(q, t), c]

Taps t are counted row by row. The window of an output either meets zeros outside of the map, or is
shifted so that it stays inside (neighbourhood attention's rule: along an axis of n pixels, the
window of k taps of pixel p begins at clamp(p - k // 2, 0, n - k)).

This is the small-kernel aggregation of LSNet (arXiv 2503.23135, interleaved groups), the dynamic
kernels of OverLoCK (arXiv 2502.20087, shifted windows), the sliding attention of TransNeXt (arXiv
2311.17132, scores masked at the border), TVConv (arXiv 2203.10489, weights without a batch),
involution (arXiv 2103.06255) and neighbourhood attention (arXiv 2204.07143).
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.ops._depthwise_routes import every, fit, wide
from keras_convnets.ops._geometry import (
    check_axes,
    output_shape,
    pair,
    promote,
    resolve_padding,
    windows,
    zeros_around,
)


def aggregate_neighborhood(
    x,
    weights,
    kernel_size,
    strides=1,
    padding="same",
    dilation_rate=1,
    border="zeros",
    interleaved=False,
):
    """Sums each pixel's neighbourhood with the pixel's own weights.

    Args:
        x: `(batch, height, width, channels)`, float.
        weights: `(batch or 1, out_height, out_width, groups, taps)`, float; `taps` is the product
            of `kernel_size`, and `groups` divides the channels: those of a group share weights.
        kernel_size: int or `(height, width)`.
        strides, padding, dilation_rate: as in `depthwise_conv2d`.
        border: `"zeros"`, or `"shift"` for windows that stay inside of the map, which needs strides
            and dilation 1, "same" padding and a map of at least the kernel's size.
        interleaved: whether channel c belongs to group c % groups, rather than to
            c // (channels / groups).

    Returns:
        `(batch, out_height, out_width, channels)`, of the type `x` and `weights` promote to.

    Raises:
        ValueError: for shapes that do not fit each other, a non-float type, or sizes that are none.
    """
    operation = AggregateNeighborhood(
        kernel_size, strides, padding, dilation_rate, border, interleaved
    )
    if isinstance(x, keras.KerasTensor) or isinstance(weights, keras.KerasTensor):
        return operation.symbolic_call(x, weights)
    return operation.call(x, weights)


def score_neighborhood(
    query,
    key,
    kernel_size,
    groups=1,
    padding="same",
    dilation_rate=1,
    border="zeros",
    interleaved=False,
):
    """Products of each pixel's query with the keys of its neighbourhood.

    Args:
        query, key: `(batch, height, width, channels)`, float.
        groups: the number of groups (heads) of channels that are summed.
        kernel_size, padding, dilation_rate, border, interleaved: as in `aggregate_neighborhood`;
            the padding must keep the size.

    Returns:
        `(batch, height, width, groups, taps)`; 0 for taps outside of the map, which
        `taps_inside` tells apart.

    Raises:
        ValueError: as `aggregate_neighborhood`.
    """
    operation = ScoreNeighborhood(kernel_size, groups, padding, dilation_rate, border, interleaved)
    if isinstance(query, keras.KerasTensor) or isinstance(key, keras.KerasTensor):
        return operation.symbolic_call(query, key)
    return operation.call(query, key)


def taps_inside(height, width, kernel_size, strides=1, padding="same", dilation_rate=1):
    """Which taps meet a pixel: a bool array `(out_height, out_width, taps)`, for masks."""
    neighborhood = Neighborhood(kernel_size, strides, padding, dilation_rate)
    axes = windows(
        (1, height, width, 1),
        (*neighborhood.kernel_size, 1, 1),
        neighborhood.strides,
        neighborhood.padding,
        neighborhood.dilation_rate,
    )
    rows, columns = (
        np.arange(w.output)[:, None] * w.stride + np.arange(w.kernel) * w.rate - w.before
        for w in axes
    )
    rows, columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = rows[:, None, :, None] & columns[None, :, None, :]
    return inside.reshape(*inside.shape[:2], -1)


@keras.saving.register_keras_serializable(package="keras_convnets")
class AggregateNeighborhood(keras.Operation):
    """`aggregate_neighborhood` in a symbolic graph; same arguments, called on `(x, weights)`."""

    def __init__(
        self,
        kernel_size,
        strides=1,
        padding="same",
        dilation_rate=1,
        border="zeros",
        interleaved=False,
        name=None,
    ):
        super().__init__(name=name)
        self.neighborhood = Neighborhood(
            kernel_size, strides, padding, dilation_rate, border, interleaved
        )

    def compute_output_spec(self, x, weights):
        shape = self.neighborhood.check_weights(x.shape, weights.shape)
        return keras.KerasTensor(shape, dtype=promote(x=x, weights=weights))

    def call(self, x, weights):
        x, weights = ops.convert_to_tensor(x), ops.convert_to_tensor(weights)
        self.neighborhood.check_weights(x.shape, weights.shape)
        dtype = promote(x=x, weights=weights)
        y = self.neighborhood.differentiable_aggregate(wide(x), wide(weights))
        return ops.cast(y, dtype)


@keras.saving.register_keras_serializable(package="keras_convnets")
class ScoreNeighborhood(keras.Operation):
    """`score_neighborhood` in a symbolic graph; same arguments, called on `(query, key)`."""

    def __init__(
        self,
        kernel_size,
        groups=1,
        padding="same",
        dilation_rate=1,
        border="zeros",
        interleaved=False,
        name=None,
    ):
        super().__init__(name=name)
        self.groups = groups
        self.neighborhood = Neighborhood(
            kernel_size, 1, padding, dilation_rate, border, interleaved
        )

    def compute_output_spec(self, query, key):
        shape = self.neighborhood.check_query(query.shape, key.shape, self.groups)
        return keras.KerasTensor(shape, dtype=promote(query=query, key=key))

    def call(self, query, key):
        query, key = ops.convert_to_tensor(query), ops.convert_to_tensor(key)
        self.neighborhood.check_query(query.shape, key.shape, self.groups)
        dtype = promote(query=query, key=key)
        scores = self.neighborhood.differentiable_score(wide(query), wide(key), self.groups)
        return ops.cast(scores, dtype)


class Neighborhood:
    """The arguments of a neighbourhood, checked."""

    def __init__(
        self,
        kernel_size,
        strides=1,
        padding="same",
        dilation_rate=1,
        border="zeros",
        interleaved=False,
    ):
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.strides = pair(strides, "strides", 1)
        self.padding = resolve_padding(padding)
        self.dilation_rate = pair(dilation_rate, "dilation_rate", 1)
        self.border, self.interleaved = border, interleaved
        if border not in ("zeros", "shift"):
            raise ValueError(f'`border` must be "zeros" or "shift". Received: {border!r}')
        plain = self.strides == self.dilation_rate == (1, 1) and self.padding == "same"
        if border == "shift" and not plain:
            raise ValueError(
                '`border="shift"` needs strides=1, dilation_rate=1 and padding="same". Received: '
                f"strides={strides}, dilation_rate={dilation_rate}, padding={padding!r}"
            )

    @property
    def taps(self):
        return self.kernel_size[0] * self.kernel_size[1]

    def output_shape(self, name, x_shape):
        check_axes(name, x_shape, "(batch, height, width, channels)", 1)
        if self.border == "shift":
            for axis, kernel in enumerate(self.kernel_size, 1):
                if x_shape[axis] is not None and x_shape[axis] < kernel:
                    raise ValueError(
                        f'With `border="shift"` the map must be at least as large as the kernel: '
                        f"resize it or take a smaller kernel. Received: "
                        f"{name}.shape={tuple(x_shape)}, kernel_size={self.kernel_size}"
                    )
        kernel_shape = (*self.kernel_size, x_shape[-1], 1)
        return output_shape(x_shape, kernel_shape, self.strides, self.padding, self.dilation_rate)

    def check_weights(self, x_shape, weights_shape):
        """The output's shape, after checking that `weights` fits `x`."""
        shape = self.output_shape("x", x_shape)
        expected = ("batch or 1", *shape[1:3], "groups", self.taps)
        fits = len(weights_shape) == 5 and all(
            not isinstance(e, int) or given in (e, None)
            for e, given in zip(expected, weights_shape)
        )
        if not fits or (weights_shape[0] not in (None, 1, shape[0]) and shape[0] is not None):
            raise ValueError(
                f"`weights` must be {expected}, taps last. Received: "
                f"weights.shape={tuple(weights_shape)}, x.shape={tuple(x_shape)}"
            )
        self.check_groups(weights_shape[3], shape[3])
        return shape

    def check_query(self, query_shape, key_shape, groups):
        """The scores' shape, after checking that `query` fits `key`."""
        shape = self.output_shape("key", key_shape)
        if len(query_shape) != 4 or any(
            None not in (q, k) and q != k for q, k in zip(query_shape, shape)
        ):
            raise ValueError(
                "`query` must have the shape of `key`, and the padding must keep that size. "
                f"Received: query.shape={tuple(query_shape)}, key.shape={tuple(key_shape)}, "
                f"padding={self.padding!r}"
            )
        self.check_groups(groups, shape[3])
        return (*query_shape[:3], groups, self.taps)

    def check_groups(self, groups, channels):
        if not groups or groups < 1 or channels % groups:
            raise ValueError(
                "The number of groups must be known and divide the channels. "
                f"Received: groups={groups}, channels={channels}"
            )

    def grouped(self, x, groups):
        """`x` with its channels as two axes: groups and, unless interleaved, then members."""
        *shape, channels = ops.shape(x)
        members = channels // groups
        inner = (members, groups) if self.interleaved else (groups, members)
        return ops.reshape(x, (*shape, *inner))

    def along_groups(self, weights):
        """`weights` of one tap, (..., groups), with an axis of size 1 for the members."""
        return ops.expand_dims(weights, -2 if self.interleaved else -1)

    def zeros(self, x):
        sizes = ops.shape(x)[1:3]
        return zeros_around(sizes, self.kernel_size, self.strides, self.padding, self.dilation_rate)

    def views(self, x, height, width):
        """For each tap the pixels it meets: `(batch, height, width, ...)`."""
        kh, kw = self.kernel_size
        if self.border == "shift":
            for i in range(kh):
                rows = inside_views(x, i, kh, 1)
                for j in range(kw):
                    yield inside_views(rows, j, kw, 2)
            return
        x = ops.pad(x, [(0, 0), *self.zeros(x), *[(0, 0)] * (len(x.shape) - 3)])
        for i in range(kh):
            rows = every(i * self.dilation_rate[0], height, self.strides[0])
            for j in range(kw):
                yield x[:, rows, every(j * self.dilation_rate[1], width, self.strides[1])]

    @property
    def has_adjoint(self):
        """Whether `spread_out` is the adjoint; it sums in place, where XLA would pad every tap."""
        plain = self.border == "zeros" and self.strides == (1, 1)
        return plain and keras.backend.backend() != "torch"

    def differentiable_aggregate(self, x, weights):
        if not self.has_adjoint:
            return self.aggregate(x, weights)

        @ops.custom_gradient
        def aggregate(x, weights):
            def backward(gradient):
                to_weights = self.score(gradient, x, weights.shape[3])
                if weights.shape[0] == 1:
                    to_weights = ops.sum(to_weights, 0, keepdims=True)
                return self.spread_out(gradient, weights), to_weights

            return self.aggregate(x, weights), backward

        return aggregate(x, weights)

    def differentiable_score(self, query, key, groups):
        if not self.has_adjoint:
            return self.score(query, key, groups)

        @ops.custom_gradient
        def score(query, key):
            def backward(gradient):
                return self.aggregate(key, gradient), self.spread_out(query, gradient)

            return self.score(query, key, groups), backward

        return score(query, key)

    def aggregate(self, x, weights):
        if self.border == "shift":
            return self.aggregate_inside(x, weights)
        height, width = ops.shape(weights)[1:3]
        groups = weights.shape[3]
        y = 0.0
        for t, view in enumerate(self.views(self.grouped(x, groups), height, width)):
            y = y + self.along_groups(weights[..., t]) * view
        batch, channels = ops.shape(x)[0], x.shape[-1]
        return ops.reshape(y, (batch, height, width, channels))

    def aggregate_inside(self, x, weights):
        """`aggregate` row by row of the windows: graphs of a tap each take minutes to compile."""
        (batch, height, width, channels), (kh, kw) = ops.shape(x), self.kernel_size
        groups, pixels = weights.shape[3], height * width
        rows, columns = inside_taps(height, kh), inside_taps(width, kw)
        x = ops.take(x, columns, axis=2)
        weights = ops.reshape(weights, (ops.shape(weights)[0], pixels, groups, kh, kw))
        weights = self.along_groups(ops.transpose(weights, (0, 1, 3, 4, 2)))
        y = 0.0
        for i in range(kh):
            row = ops.reshape(ops.take(x, rows[:, i], axis=1), (batch, pixels, kw, channels))
            row = self.grouped(row, groups)
            if keras.backend.backend() == "jax":  # XLA on a CPU: ten times faster than the sum
                for j in range(kw):
                    y = y + weights[:, :, i, j] * row[:, :, j]
            else:
                y = y + ops.sum(weights[:, :, i] * row, 2)
        return ops.reshape(y, (batch, height, width, channels))

    def score(self, query, key, groups):
        height, width = ops.shape(query)[1:3]
        query, members = self.grouped(query, groups), -2 if self.interleaved else -1
        views = self.views(self.grouped(key, groups), height, width)
        return ops.stack([ops.sum(query * view, members) for view in views], -1)

    def spread_out(self, y, weights):
        """The adjoint of `aggregate` in `x`, as sums over what reaches each pixel; strides 1."""
        groups = weights.shape[3]
        befores, afters = [], []
        for (before, after), kernel, rate in zip(
            self.zeros(y), self.kernel_size, self.dilation_rate
        ):
            befores.append((kernel - 1) * rate - before)
            afters.append((kernel - 1) * rate - after)
        height, width = (
            size + (kernel - 1) * rate - before - after
            for size, kernel, rate, (before, after) in zip(
                ops.shape(y)[1:3], self.kernel_size, self.dilation_rate, self.zeros(y)
            )
        )
        y, weights = fit(self.grouped(y, groups), befores, afters), fit(weights, befores, afters)
        x, (kh, kw) = 0.0, self.kernel_size
        for t in range(self.taps):
            rows = every((kh - 1 - t // kw) * self.dilation_rate[0], height, 1)
            columns = every((kw - 1 - t % kw) * self.dilation_rate[1], width, 1)
            x = x + self.along_groups(weights[:, rows, columns, :, t]) * y[:, rows, columns]
        return ops.reshape(x, (ops.shape(y)[0], height, width, -1))


def inside_taps(length, kernel):
    """The pixels that each pixel's window of `kernel` taps meets along an axis of `length`, if it
    stays inside: int, (length, kernel)."""
    first = ops.clip(ops.arange(length) - kernel // 2, 0, length - kernel)
    return first[:, None] + ops.arange(kernel)


def inside_views(x, tap, kernel, axis):
    """Tap `tap` of windows that stay inside: the first and the last window serve the border."""
    index = [slice(None)] * axis
    stop = ops.shape(x)[axis] - (kernel - 1 - tap)
    middle = x[(*index, slice(tap, stop))]
    first = ops.repeat(middle[(*index, slice(0, 1))], kernel // 2, axis)
    last = ops.repeat(middle[(*index, slice(-1, None))], kernel - 1 - kernel // 2, axis)
    return ops.concatenate([first, middle, last], axis)
