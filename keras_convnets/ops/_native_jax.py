"""What XLA computes slowly on a CPU, in other words: convolutions of one pixel, as products;
grouped ones, in batches four to eight times faster group by group; the gradients of kernels, two to
six times faster by products of shifted maps; and averages around each pixel, up to four times
faster by sums of them.

Where something is not covered the functions say so, and Keras' own code is to be called.
"""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.custom_derivatives import SymbolicZero

from keras_convnets.ops._geometry import zeros_around
from keras_convnets.ops._groups import side_by_side

MOST_TAPS = 64
MOST_PRODUCTS = 16  # for the groups of a kernel of one pixel, as each has to be compiled
# Of a group: with fewer, several groups at once are faster, though most of their kernel is zero.
LEAST_CHANNELS = 16


def conv2d(x, kernel, bias, strides, padding, dilation_rate, groups):
    """A convolution and its bias; `None` for very large kernels, and on accelerators."""
    if jax.default_backend() != "cpu" or isinstance(x, keras.KerasTensor):
        return None
    height, width = kernel.shape[:2]
    if height * width > MOST_TAPS:
        return None
    kernel = keras.ops.convert_to_tensor(kernel)
    if height == width == 1 and groups <= MOST_PRODUCTS:
        x = x[:, :: strides[0], :: strides[1]]
        pairs = zip(jnp.split(x, groups, 3), jnp.split(kernel[0, 0], groups, 1))
        y = jnp.concatenate([_product(*pair) for pair in pairs], 3)
    else:
        y = _convolution(x, kernel, tuple(strides), padding, tuple(dilation_rate))
    return y if bias is None else y + keras.ops.convert_to_tensor(bias)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _convolution(x, kernel, *geometry):
    return _of_groups(_plain, x, kernel, *geometry)


@functools.partial(_convolution.defjvp, symbolic_zeros=True)
def _derivative(strides, padding, dilation_rate, primals, tangents):
    geometry = strides, padding, dilation_rate
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_of_groups(_turned, dx, kernel, *geometry))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(_of_groups(_by_rows, x, dkernel, *geometry))
    return _convolution(x, kernel, *geometry), sum(terms)


def _of_groups(convolution, x, kernel, *geometry):
    """A convolution by one of those below, which know no groups."""
    if x.shape[3] == kernel.shape[2]:
        return convolution(x, kernel, *geometry)
    return _in_turn(convolution, x, kernel, *geometry)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))  # else each call compiles the loop
def _in_turn(convolution, x, kernel, *geometry):
    """One group after the other."""
    height, width, channels, filters = kernel.shape
    kernel, groups = side_by_side(kernel, x.shape[3] // channels, LEAST_CHANNELS)
    channels = x.shape[3] // groups
    maps = jnp.moveaxis(x.reshape(*x.shape[:3], groups, channels), 3, 0)
    kernels = kernel.reshape(height, width, channels, groups, filters // groups)
    pairs = maps, jnp.moveaxis(kernels, 3, 0)
    y = jnp.moveaxis(jax.lax.map(lambda pair: convolution(*pair, *geometry), pairs), 0, 3)
    return y.reshape(*y.shape[:3], filters)


def _plain(x, kernel, strides, padding, dilation_rate):
    return keras.ops.conv(x, kernel, strides, padding, "channels_last", dilation_rate)


def _turned(x, kernel, strides, padding, dilation_rate):
    """For its transpose: that takes the kernel in the other order of channels, and XLA needs ten
    times as long in a loop if that is not the usual one."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.swapaxes(2, 3),
        strides,
        padding.upper(),
        rhs_dilation=dilation_rate,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


def _by_rows(x, kernel, strides, padding, dilation_rate):
    """A sum of products, one for each row of the kernel, for its transpose: that gives the gradient
    of the kernel."""
    height, width, channels, filters = kernel.shape
    zeros = zeros_around(x.shape[1:3], (height, width), strides, padding, dilation_rate)
    x = jnp.pad(x, ((0, 0), *zeros, (0, 0)))
    rows, columns = (
        range(0, size - (taps - 1) * dilation, stride)
        for size, taps, stride, dilation in zip(x.shape[1:3], kernel.shape, strides, dilation_rate)
    )
    y = 0
    for i, weights in enumerate(kernel):
        moved = _moved(x, 1, rows, i * dilation_rate[0])
        taps = [_moved(moved, 2, columns, j * dilation_rate[1]) for j in range(width)]
        windows = jnp.concatenate(taps, axis=3).reshape(-1, width * channels)
        y += windows @ weights.reshape(width * channels, filters)
    return y.reshape(x.shape[0], len(rows), len(columns), filters)


def _moved(x, axis, starts, by):
    first, last = starts[0] + by, starts[-1] + by
    return jax.lax.slice_in_dim(x, first, last + 1, starts.step, axis)


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
