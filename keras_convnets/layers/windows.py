"""Attention inside the windows of a map, contiguous or strided ones."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.direct import Direct


@keras.saving.register_keras_serializable("keras_convnets")
class PadToMultiple(Direct, keras.layers.Layer):
    """Zeros at the bottom and on the right, until both sides are multiples of `multiple`.

    Input: (batch, height, width, channels). Output: (batch, height', width', channels).
    """

    def __init__(self, multiple: int, **kwargs):
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, x):
        sizes = ops.shape(x)[1:3]
        wanted = [_ceil(size, self.multiple) for size in sizes]
        if all(isinstance(size, int) for size in sizes):
            zeros = [(0, want - size) for size, want in zip(sizes, wanted)]
            return ops.pad(x, [(0, 0), *zeros, (0, 0)]) if any(map(sum, zeros)) else x
        # Numbers of zeros must be known, ends of slices need not be.
        x = ops.pad(x, [(0, 0), *[(0, self.multiple - 1)] * 2, (0, 0)])
        return x[:, : wanted[0], : wanted[1]]

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        return (batch, *(size and _ceil(size, self.multiple) for size in sizes), channels)


@keras.saving.register_keras_serializable("keras_convnets")
class WindowPartition(Direct, keras.layers.Layer):
    """A map as rows of vectors, one set of rows for each window and each head of channels.

    Input: (batch, height, width, channels), both sides multiples of the window. Output:
    (batch, windows * heads, window * window, channels / heads).

    Args:
        window: side of the square windows.
        heads: parts of the channels.
        strided: pixels of a window are not neighbours, but as far apart as can be: along an axis
            of n windows, window i has the pixels i, i + n, i + 2n, ...
    """

    def __init__(self, window: int, heads: int = 1, strided: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.window = window
        self.heads = heads
        self.strided = strided

    def call(self, x):
        height, width = ops.shape(x)[1:3]
        side, down, across = self.window, height // self.window, width // self.window
        if self.strided:
            x = ops.reshape(x, (-1, side, down, side, across, x.shape[-1]))
            x = ops.transpose(x, (0, 2, 4, 1, 3, 5))
        else:
            x = ops.reshape(x, (-1, down, side, across, side, x.shape[-1]))
            x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        # Two steps: LiteRT transposes up to six axes.
        depth = x.shape[-1] // self.heads
        x = ops.reshape(x, (-1, down * across, side * side, self.heads, depth))
        x = ops.transpose(x, (0, 1, 3, 2, 4))
        return ops.reshape(x, (-1, down * across * self.heads, side * side, depth))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        known = height is not None and width is not None
        windows = (height // self.window) * (width // self.window) if known else None
        sets = windows and windows * self.heads
        return (batch, sets, self.window**2, channels // self.heads)


@keras.saving.register_keras_serializable("keras_convnets")
class WindowMerge(Direct, keras.layers.Layer):
    """The map that `WindowPartition` made rows of, without the zeros of `PadToMultiple`.

    Input: the rows, (batch, windows * heads, window * window, depth), and any map of the height and
    width that the output has, (batch, height, width, ...). Output: (batch, height, width,
    heads * depth). Arguments as in `WindowPartition`.
    """

    def __init__(self, window: int, heads: int = 1, strided: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.window = window
        self.heads = heads
        self.strided = strided

    def call(self, inputs):
        rows, like = inputs
        height, width = ops.shape(like)[1:3]
        side, depth = self.window, rows.shape[-1]
        down, across = _ceil(height, side) // side, _ceil(width, side) // side
        x = ops.reshape(rows, (-1, down * across, self.heads, side * side, depth))
        x = ops.transpose(x, (0, 1, 3, 2, 4))
        x = ops.reshape(x, (-1, down, across, side, side, self.heads * depth))
        x = ops.transpose(x, (0, 3, 1, 4, 2, 5) if self.strided else (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, side * down, side * across, self.heads * depth))
        return x[:, :height, :width]

    def compute_output_shape(self, input_shape):
        rows, like = input_shape
        return (*like[:3], self.heads * rows[-1])


@keras.saving.register_keras_serializable("keras_convnets")
class WindowAttention(Block):
    """softmax(q k^T / sqrt(depth)) v in each window and each head, of maps q, k and v.

    Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), equation 1, in windows as in Liu et al.
    2021 (https://arxiv.org/abs/2103.14030) or, strided, in Zhang et al. 2023 (EMO,
    https://arxiv.org/abs/2301.01146).

    Input: query and key, (batch, height', width', channels), and value, (batch, height', width',
    value channels), sides being multiples of the window, as `PadToMultiple` makes them; and the map
    before that, (batch, height, width, ...). Output: (batch, height, width, value channels). The
    positions of its zeros are keys like all others.

    Args:
        head_size: channels of query and key in each head.
        heads: their number; it divides the value channels too.
        window, strided: as in `WindowPartition`.
    """

    def __init__(
        self, head_size: int, heads: int, window: int = 7, strided: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        self.head_size = head_size
        self.queries = WindowPartition(window, heads, strided)
        self.keys = WindowPartition(window, heads, strided)
        self.values = WindowPartition(window, heads, strided)
        self.merge = WindowMerge(window, heads, strided)

    def call(self, inputs):
        query, key, value, like = inputs
        keys = ops.transpose(self.keys(key), (0, 1, 3, 2)) * self.head_size**-0.5
        weights = ops.softmax(ops.matmul(self.queries(query), keys))
        return self.merge([ops.matmul(weights, self.values(value)), like])


def _ceil(size, multiple):
    return -(-size // multiple) * multiple
