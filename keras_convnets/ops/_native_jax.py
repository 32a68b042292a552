"""What XLA computes slowly on a CPU, in other words: convolutions of one pixel, whose kernels'
gradients take it two to six times longer than those of products, and averages around each pixel,
which take it up to four times longer than sums of shifted maps.

Where something is not covered the functions say so, and Keras' own code is to be called.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np


def conv2d(x, kernel, bias, strides, padding, dilation_rate, groups):
    """A product and its bias; `None` for larger and grouped kernels, and on accelerators."""
    if kernel.shape[:2] != (1, 1) or groups > 1 or jax.default_backend() != "cpu":
        return None
    if isinstance(x, keras.KerasTensor):
        return None
    kernel = keras.ops.convert_to_tensor(kernel)
    y = _product(x[:, :: strides[0], :: strides[1]], kernel[0, 0])
    return y if bias is None else y + keras.ops.convert_to_tensor(bias)


def dense(x, kernel, bias):
    """A product and its bias; `None` for symbols, and on accelerators."""
    if isinstance(x, keras.KerasTensor) or jax.default_backend() != "cpu":
        return None
    y = _product(keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(kernel))
    return y if bias is None else y + keras.ops.convert_to_tensor(bias)


def _product(x, kernel):
    """Of rows: a map's would have a gradient over three axes, for which XLA turns the map around,
    and computes what gave it again, in an order of which memory is slow."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def average_pool(x, pool_size, strides, padding):
    """Averages of what is inside of the map, with stride 1; `None` for others, and on
    accelerators."""
    if tuple(strides) != (1, 1) or jax.default_backend() != "cpu":
        return None
    if isinstance(x, keras.KerasTensor):
        return None
    for axis, window in zip((1, 2), pool_size):
        size, before = x.shape[axis], (window - 1) // 2 if padding == "same" else 0
        after = window - 1 - before if padding == "same" else 0
        x = jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(4)])
        length = size + before + after - window + 1
        taps = (jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(window))
        first = np.arange(length) - before
        inside = np.minimum(first + window, size) - np.maximum(first, 0)
        shape = [length if i == axis else 1 for i in range(4)]
        x = sum(taps) * np.reshape(1 / inside, shape).astype(x.dtype)
    return x
