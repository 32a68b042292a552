"""The graph in the operators that phones run fast."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

from keras_convnets.graph.fold import fold_batchnorm
from keras_convnets.graph.reparameterize import reparameterize
from keras_convnets.graph.rewrite import in_turn, rewrite
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.fast import CONV2D, DENSE, LAYER_NORM, BatchNormalization, Conv2D
from keras_convnets.layers.leaves import LayerScale
from keras_convnets.layers.metaformer import StarReLU
from keras_convnets.ops._geometry import zeros_around

# XNNPACK has depthwise kernels of up to 25 taps. A larger one falls back to a loop that is 6 to 20
# times slower a tap: 3.1 ms for 7x7 on 56x56x96, where three of its bands and their sum take 0.6.
MOST_TAPS = 25


def lower(model: keras.Model) -> keras.Model:
    """A flat copy of a model for inference on LiteRT: fused, folded, and in its native operators.

    After `reparameterize` and `fold_batchnorm`:

    - A normalisation over channels or over the whole map is (x - mean) / sqrt(mean of its square +
      epsilon); its scale and shift, every LayerScale, and the numbers of a StarReLU go into the
      convolutions and dense layers around them.
    - Dense layers on maps are 1x1 convolutions.
    - Depthwise convolutions of more than 25 taps are sums of smaller ones.
    - Grouped convolutions are convolutions of slices; with two channels in each group, of which
      there are many, they are two depthwise ones.
    - The largest values of a map, kept as a map of one position, are max pooling of all of it.
    - Fourier transforms are products with their matrices: a layer or operation with a method
      `by_products(input_shape)` is replaced by what that returns, the same with the same weights.

    Args:
        model: as in `graph.flatten`, with a known input size; it stays as it is, and the result has
            weights of its own.

    Returns:
        A model whose outputs differ from the given one's by rounding only.

    Raises:
        ValueError: as `graph.flatten`.
    """
    return in_turn(model, reparameterize, _open_scales, fold_batchnorm, lower_products)


def _open_scales(model):
    """Scales and shifts per channel as BatchNormalizations, which `fold_batchnorm` folds."""
    return rewrite(model, once(_open_scale))


def lower_products(model: keras.Model) -> keras.Model:
    """Products that LiteRT has no fast form of, by others."""
    return rewrite(model, once(_lower_product))


def once(lower_operation: Callable) -> Callable:
    """`replace` for `rewrite`: a layer that is called at several nodes is lowered once."""
    lowered = {}

    def replace(operation, node):
        if operation not in lowered:
            lowered[operation] = lower_operation(operation, node)
        return lowered[operation]

    return replace


def open_layer_scale(operation: keras.Operation, node) -> Callable | None:
    """A LayerScale as a BatchNormalization, `None` for what is none."""
    if type(operation) is LayerScale:
        return affine(operation.name, node, scale=operation.gamma)
    return None


def _open_scale(operation, node) -> Callable | None:
    if type(operation) in (LayerScale, StarReLU):
        return open_layer_scale(operation, node) or open_star_relu(operation, node)
    axes = normalized_axes(operation, node)
    if axes is None:
        return None
    scaled = affine_of(operation, node)
    epsilon = operation.epsilon

    def normalise(x):
        x = x - ops.mean(x, axis=axes, keepdims=True)
        variance = ops.mean(ops.square(x), axis=axes, keepdims=True)
        return scaled(x * ops.rsqrt(variance + epsilon))

    return normalise


def open_star_relu(operation: keras.Operation, node) -> Callable | None:
    """A StarReLU as a square and a BatchNormalization, `None` for what is none."""
    if type(operation) is not StarReLU:
        return None
    channels = node.outputs[0].shape[-1]
    scaled = affine(
        operation.name,
        node,
        *(np.repeat(ops.convert_to_numpy(v), channels) for v in (operation.scale, operation.bias)),
    )

    def activate(x):
        x = ops.relu(x)
        return scaled(ops.multiply(x, x))

    return activate


def normalized_axes(operation: keras.Operation, node) -> tuple[int, ...] | None:
    """The axes whose statistics a normalisation takes, if it is over channels or over all but the
    batch, with a scale and a shift per channel; `None` for others."""
    kind, rank = type(operation), len(node.outputs[0].shape)
    if kind in LAYER_NORM and not operation.rms_scaling:
        return (-1,) if list(np.ravel(operation.axis) % rank) == [rank - 1] else None
    if kind is layers.GroupNormalization and operation.groups == 1:
        return tuple(range(1, rank)) if operation.axis in (-1, rank - 1) else None
    return None


def affine_of(norm: keras.Layer, node) -> BatchNormalization:
    """Scale and shift of a normalisation as `affine`."""
    scale = norm.gamma if norm.scale else None
    return affine(norm.name, node, scale, norm.beta if norm.center else None)


def affine(name: str, node, scale=None, shift=None) -> BatchNormalization:
    """A scale and a shift per channel, of a node's output, as a BatchNormalization."""
    shape = node.outputs[0].shape
    norm = BatchNormalization(
        axis=-1, scale=scale is not None, center=shift is not None, epsilon=0.0, name=name
    )
    norm.build(shape)
    for variable, value in ((norm.gamma, scale), (norm.beta, shift)):
        if value is not None:
            variable.assign(ops.convert_to_numpy(value))
    return norm


def _lower_product(operation, node) -> Callable | None:
    kind, shape = type(operation), node.outputs[0].shape
    if hasattr(kind, "by_products"):
        return operation.by_products(node.input_tensors[0].shape)
    if kind in DENSE and len(shape) == 4:
        return _pointwise(operation, node.input_tensors[0].shape)
    if kind in CONV2D and operation.groups > 1:
        convolve = _paired if _has_pairs(operation) else _sliced
        return convolve(operation, node.input_tensors[0].shape)
    if kind is layers.GlobalMaxPooling2D and operation.keepdims:
        return layers.MaxPooling2D(node.input_tensors[0].shape[1:3], name=operation.name)
    if (
        kind in (DepthwiseConv2D, layers.DepthwiseConv2D)
        and operation.kernel.shape[-1] == 1
        and math.prod(operation.kernel_size) > MOST_TAPS
    ):
        return _tiled(operation, node.input_tensors[0].shape)
    return None


def _pointwise(dense, input_shape):
    """A dense layer as a 1x1 convolution."""
    convolution = Conv2D(
        dense.units, 1, activation=dense.activation, use_bias=dense.use_bias, name=dense.name
    )
    convolution.build(input_shape)
    kernel, *bias = dense.get_weights()
    convolution.set_weights([kernel[None, None], *bias])
    return convolution


def _sliced(grouped, input_shape):
    """A grouped convolution as one convolution for each group, and their concatenation."""
    config = grouped.get_config()
    groups, channels = config["groups"], input_shape[-1] // config["groups"]
    config |= {"groups": 1, "filters": config["filters"] // groups}
    kernels = np.split(ops.convert_to_numpy(grouped.kernel), groups, axis=-1)
    biases = np.split(ops.convert_to_numpy(grouped.bias), groups) if grouped.use_bias else []
    parts = []
    for i in range(groups):
        part = Conv2D.from_config(config | {"name": f"{grouped.name}_group{i}"})
        part.build((*input_shape[:-1], channels))
        part.set_weights([kernels[i], *biases[i : i + 1]])
        parts.append(part)

    def convolve(x):
        slices = ops.split(x, groups, axis=-1)
        return ops.concatenate([part(x) for part, x in zip(parts, slices)], axis=-1)

    return convolve


def _has_pairs(grouped):
    """Whether a grouped convolution has two channels in each group, before and after."""
    pairs = grouped.kernel.shape[2] == 2 and grouped.filters == 2 * grouped.groups
    return pairs and math.prod(grouped.kernel_size) <= MOST_TAPS


def _paired(grouped, input_shape):
    """A convolution of pairs of channels as two depthwise ones, of the map and of the map whose
    pairs are swapped: each output has a kernel for its own channel and one for the other."""
    kernel = ops.convert_to_numpy(grouped.kernel)
    channels = np.arange(grouped.filters)
    halves = []
    for name, inputs in (("own", channels % 2), ("other", 1 - channels % 2)):
        half = DepthwiseConv2D(
            grouped.kernel_size,
            grouped.strides,
            grouped.padding,
            grouped.dilation_rate,
            use_bias=grouped.use_bias and not halves,
            name=f"{grouped.name}_{name}",
        )
        half.build(input_shape)
        part = kernel[:, :, inputs, channels, None]
        half.set_weights([part, grouped.bias] if half.use_bias else [part])
        halves.append(half)
    own, other = halves

    def convolve(x):
        # Four axes and whole slices: XNNPACK has no others.
        pairs = ops.reshape(x, (-1, input_shape[1], input_shape[2] * len(channels) // 2, 2))
        swapped = ops.concatenate([pairs[..., 1:], pairs[..., :1]], axis=-1)
        return grouped.activation(own(x) + other(ops.reshape(swapped, (-1, *input_shape[1:]))))

    return convolve


def _tiled(depthwise, input_shape):
    """A depthwise convolution as the sum of those of the tiles of its kernel, on a padded map."""
    strides, rates = depthwise.strides, depthwise.dilation_rate
    zeros = zeros_around(input_shape[1:3], depthwise.kernel_size, strides, depthwise.padding, rates)
    outputs = depthwise.compute_output_shape(input_shape)[1:3]
    kernel = ops.convert_to_numpy(depthwise.kernel)
    tiles = []
    for corner, size in _tiles(*depthwise.kernel_size):
        starts = [first * rate for first, rate in zip(corner, rates)]
        window = [
            slice(start, start + (output - 1) * stride + (taps - 1) * rate + 1)
            for start, output, stride, taps, rate in zip(starts, outputs, strides, size, rates)
        ]
        edges = zip(window, zeros, input_shape[1:3])
        if any(w.stop <= front or w.start >= front + length for w, (front, _), length in edges):
            continue  # what it sees of so small a map is the padding alone
        tile = DepthwiseConv2D(
            size,
            strides,
            "valid",
            rates,
            use_bias=depthwise.use_bias and not tiles,
            name=f"{depthwise.name}_tile{len(tiles)}",
        )
        tile.build((None, *(part.stop - part.start for part in window), input_shape[-1]))
        part = kernel[tuple(slice(first, first + taps) for first, taps in zip(corner, size))]
        tile.set_weights([part, *depthwise.get_weights()[1:]] if tile.use_bias else [part])
        tiles.append((window, tile))
    activation = getattr(depthwise, "activation", keras.activations.linear)
    pad = layers.ZeroPadding2D(zeros, name=f"{depthwise.name}_pad")

    def convolve(x):
        x = pad(x)
        return activation(sum(tile(x[:, rows, columns]) for (rows, columns), tile in tiles))

    return convolve


def _tiles(height, width):
    """Corner and size of the fewest tiles, as even as can be, that make up a kernel."""
    sizes = [(h, MOST_TAPS // h) for h in range(1, MOST_TAPS + 1)]
    counts = [(math.ceil(height / h), math.ceil(width / w)) for h, w in sizes]
    # Of equally many, the widest: rows of a map lie together in memory.
    down, across = min(counts, key=lambda count: (math.prod(count), count[1]))
    for rows in np.array_split(np.arange(height), down):
        for columns in np.array_split(np.arange(width), across):
            yield (int(rows[0]), int(columns[0])), (len(rows), len(columns))
