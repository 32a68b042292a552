"""Penalties on kernels."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.ops import _geometry as geometry
from keras_convnets.ops._depthwise_routes import wide


@keras.saving.register_keras_serializable("keras_convnets")
class ConvOrthogonality(keras.regularizers.Regularizer):
    """How far a convolution is from keeping lengths and angles, whatever the size of the map.

    factor * (|conv(K, K) - I|^2 - max(filters - channels * strides, 0)), strides being the product
    of both. conv(K, K) correlates every filter with every one, at all shifts by multiples of the
    strides; I is 1 for a filter with itself where it is not shifted. With more filters than inputs
    of a stride, columns of the convolution's matrix are meant instead of rows. Achour et al. 2021
    (https://arxiv.org/abs/2108.05623, definition of L_orth).

    It is zero for a circular convolution whose singular values are all 1, and only for one.

    Args:
        factor: of the penalty.
        strides: of the convolution, int or (vertical, horizontal).

    Raises:
        ValueError: for a kernel that is not (height, width, channels, filters), or strides that are
            none.
    """

    def __init__(self, factor: float = 0.01, strides: int | tuple[int, int] = 1):
        self.factor = factor
        self.strides = geometry.pair(strides, "strides", 1)

    def __call__(self, kernel):
        if len(kernel.shape) != 4:
            raise ValueError(
                "ConvOrthogonality: the kernel must be (height, width, channels, filters). "
                f"Received: kernel.shape={tuple(kernel.shape)}"
            )
        *sizes, channels, filters = kernel.shape
        kernel = wide(kernel)
        reach = [(size - 1) // stride for size, stride in zip(sizes, self.strides)]
        zeros = [(n * stride, n * stride) for n, stride in zip(reach, self.strides)]
        images = ops.pad(ops.transpose(kernel, (3, 0, 1, 2)), [(0, 0), *zeros, (0, 0)])
        products = ops.conv(images, kernel, self.strides, "valid", data_format="channels_last")
        middle = ops.eye(filters, dtype=kernel.dtype)[:, None, None]
        identity = ops.pad(middle, [(0, 0), *((n, n) for n in reach), (0, 0)])
        distance = ops.sum(ops.square(products - identity))
        surplus = max(filters - channels * self.strides[0] * self.strides[1], 0)
        return self.factor * (distance - surplus)

    def get_config(self):
        return {"factor": self.factor, "strides": self.strides}
