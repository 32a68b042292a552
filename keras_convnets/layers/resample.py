"""Maps at other sizes: each row and column a weighted sum of a few old ones, at any size."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.layers.direct import Direct


def average(x, height, width):
    """`x`, (batch, old height, old width, channels), at another size: new row i is the mean of the
    old ones from floor(i * old / new) up to, without, ceil((i + 1) * old / new), columns alike.
    Sizes may be tensors in TensorFlow's graphs."""
    for axis, new in ((1, height), (2, width)):
        old = ops.shape(x)[axis]
        x = (_average if _are_known((old, new)) else _average_any)(x, axis, old, new)
    return x


def _average(x, axis, old, new):
    """Tap by tap: few of the products with a matrix are not zero."""
    rows = np.arange(new)
    first, end = rows * old // new, -(-(rows + 1) * old // new)
    counts, total = end - first, 0
    for tap in range(counts.max()):
        shares = _along(ops.cast((tap < counts) / counts, x.dtype), axis)
        total = total + shares * ops.take(x, np.minimum(first + tap, old - 1), axis)
    return total


def _average_any(x, axis, old, new):
    i, j = ops.arange(new)[:, None], ops.arange(old)[None]
    first, end = i * old // new, -(-(i + 1) * old // new)
    inside = ops.logical_and(j >= first, j < end)
    shares = ops.cast(inside, "float32") / ops.cast(end - first, "float32")
    pattern = "ih,bhwc->biwc" if axis == 1 else "jw,bhwc->bhjc"
    return ops.einsum(pattern, ops.cast(shares, x.dtype), x)


def interpolate(x, height, width):
    """`x` as in `average` at another size, linear between the centres of rows and of columns;
    beyond the outer centres it is the outer row or column."""
    for axis, new in ((1, height), (2, width)):
        old = ops.shape(x)[axis]
        scale = ops.cast(old, "float32") / ops.cast(new, "float32")
        place = (ops.cast(ops.arange(new), "float32") + 0.5) * scale - 0.5
        place = ops.clip(place, 0, ops.cast(old - 1, "float32"))
        first = ops.floor(place)
        share = _along(ops.cast(place - first, x.dtype), axis)
        first = ops.cast(first, "int32")
        low, high = ops.take(x, first, axis), ops.take(x, ops.minimum(first + 1, old - 1), axis)
        x = low + share * (high - low)
    return x


def _along(values, axis):
    """Of an axis of a map: in a form that multiplies it."""
    return ops.reshape(values, (-1, *[1] * (3 - axis)))


def _are_known(*shapes):
    return all(isinstance(side, int) for shape in shapes for side in shape)


@keras.saving.register_keras_serializable("keras_convnets")
class AdaptiveAverage2D(Direct, keras.layers.Layer):
    """Means over `size` x `size` windows that cover the map; they repeat pixels of a smaller one.

    Input: (batch, height, width, channels). Output: (batch, size, size, channels).
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, x):
        return average(x, self.size, self.size)

    def compute_output_shape(self, input_shape):
        return input_shape[0], self.size, self.size, input_shape[3]


@keras.saving.register_keras_serializable("keras_convnets")
class ResizeLike2D(Direct, keras.layers.Layer):
    """A map at the size of another one: called on `[x, like]`.

    Inputs: (batch, height, width, channels) and (batch, other height, other width, any). Output:
    (batch, other height, other width, channels).

    Args:
        method: `"bilinear"`, or `"average"` for the means of adaptive average pooling.
    """

    def __init__(self, method: str = "bilinear", **kwargs):
        super().__init__(**kwargs)
        if method not in ("bilinear", "average"):
            raise ValueError(f"ResizeLike2D: method={method!r} must be 'bilinear' or 'average'.")
        self.method = method

    def call(self, inputs):
        x, like = inputs
        size = ops.shape(like)[1:3]
        if _are_known(ops.shape(x)[1:3], size) and tuple(ops.shape(x)[1:3]) == tuple(size):
            return x
        return (interpolate if self.method == "bilinear" else average)(x, *size)

    def compute_output_shape(self, input_shape):
        shape, like = input_shape
        return shape[0], *like[1:3], shape[3]


@keras.saving.register_keras_serializable("keras_convnets")
class EnlargeToHold2D(Direct, keras.layers.Layer):
    """Enlarges a map whose shorter side is below `size` to that, bilinearly; others stay.

    Input: (batch, height, width, channels). Output: the same, or (batch, size, floor(size / height
    * width), channels) of a low map, and likewise of a narrow one.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, x):
        old = ops.shape(x)[1:3]
        new = self._enlarged(*old)
        if _are_known(old) and tuple(old) == tuple(new):
            return x
        return interpolate(x, *new)

    def _enlarged(self, height, width):
        if _are_known((height, width)):
            shorter = min(height, width)
            if shorter >= self.size:
                return height, width
            return tuple(int(self.size / shorter * side) for side in (height, width))
        shorter = ops.minimum(height, width)
        factor = ops.cast(ops.maximum(shorter, self.size), "float64") / ops.cast(shorter, "float64")
        return [ops.cast(factor * ops.cast(side, "float64"), "int32") for side in (height, width)]

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        if height is None or width is None:
            return batch, None, None, channels
        return batch, *self._enlarged(height, width), channels
