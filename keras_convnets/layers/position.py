"""Where in a map a position is, told to layers that cannot see it."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.direct import Direct
from keras_convnets.layers.initializers import NORMAL_02


@keras.saving.register_keras_serializable("keras_convnets")
class PositionEmbedding2D(Direct, keras.layers.Layer):
    """x plus a learned map, which is interpolated to another size with cubic polynomials.

    Input and output: (batch, height, width, channels).

    Args:
        grid: rows and columns of the learned map.
        published: `"tokens"` or `"map"`, whether checkpoints hold it as (1, grid * grid, channels)
            or as (1, channels, grid, grid).
    """

    def __init__(self, grid: int, published: str, **kwargs):
        super().__init__(**kwargs)
        self.grid = grid
        self.published = published

    def build(self, input_shape):
        shape = (self.grid, self.grid, input_shape[-1])
        self.table = self.add_weight(shape=shape, initializer=NORMAL_02, name=self.published)

    def call(self, x):
        if tuple(x.shape[1:3]) == (self.grid, self.grid):
            return x + self.table
        rows, columns = (self._shares(length, x.dtype) for length in ops.shape(x)[1:3])
        return x + ops.einsum("ig,ghc,jh->ijc", rows, self.table, columns)

    def _shares(self, length, dtype):
        """Share of each learned row in each row of the image, (length, grid): cubic convolution
        (Keys 1981) with PyTorch's coefficient, and the rows at the border again beyond it."""
        ratio = self.grid / ops.cast(length, "float32")
        place = (ops.cast(ops.arange(length), "float32") + 0.5) * ratio - 0.5
        first = ops.floor(place)
        shares, a = 0.0, -0.75
        for step in (-1, 0, 1, 2):
            d = ops.abs(place - first - step)
            near = ((a + 2) * d - (a + 3)) * d * d + 1
            far = ((d - 5) * d + 8) * d * a - 4 * a
            row = ops.cast(ops.clip(first + step, 0, self.grid - 1), "int32")
            share = ops.where(d <= 1, near, far)[:, None]
            shares = shares + share * ops.one_hot(row, self.grid, dtype="float32")
        return ops.cast(shares, dtype)

    def compute_output_shape(self, input_shape):
        return input_shape
