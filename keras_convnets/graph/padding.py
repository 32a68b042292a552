"""Zero padding as a part of the convolution after it, which spares the padded copy of the map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_convnets.graph.rewrite import graph_nodes, leaf_graph, rebuild
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.fast import (
    CONV2D,
    ZERO_PADDING,
    Conv2D,
    PaddingConv2D,
    ZeroPadding2D,
)

# Exact types: a subclass may do something else with its kernel.
CONVOLUTIONS = (*CONV2D, layers.DepthwiseConv2D, DepthwiseConv2D)


def fold_padding(model: keras.Model) -> keras.Model:
    """A flat copy of a model whose convolutions pad by themselves, by "same", where that is exact.

    Runtimes that know "same" and "valid" only hold a padded copy of the map beside the map for any
    other padding. A stride of 2 on an even size is such a case: "same" adds one zero at the end,
    PyTorch's convention one on each side. A row and a column of zeros at the end of the kernel make
    the two the same, for a little more work and no copy. Where one row and column are not enough,
    the padding stays as it is. Outputs differ from the model's by rounding only.

    Args:
        model: as in `graph.flatten`, with a known input size; it stays as it is, and the result has
            weights of its own.

    Raises:
        ValueError: as `graph.flatten`.
    """
    return _rebuilt(model, _replace)


def merge_padding(model: keras.Model) -> keras.Model:
    """A flat copy of a model with each ZeroPadding2D in the convolution after it, if that is its
    only purpose: a `layers.fast.PaddingConv2D`.

    Raises:
        ValueError: as `graph.flatten`.
    """
    return _rebuilt(model, _merge)


def _rebuilt(model, add):
    with leaf_graph(model) as graph:
        nodes = graph_nodes(graph)
        calls = Counter(node.operation for node in nodes)
        uses = Counter(id(x) for node in nodes for x in node.input_tensors)
        uses.update(map(id, graph.outputs))
        producer = {id(x): node for node in nodes for x in node.outputs}
        replacements = {}
        for node in nodes:
            if type(node.operation) not in CONVOLUTIONS or calls[node.operation] > 1:
                continue
            (x,) = node.input_tensors
            before = producer.get(id(x))
            if uses[id(x)] > 1 or before is None or calls[before.operation] > 1:
                before = None
            add(node, before, replacements)
        return rebuild(graph, lambda operation, node: replacements.get(operation))


def _merge(node, before, replacements):
    convolution = node.operation
    if (
        before is None
        or type(convolution) not in CONV2D
        or type(before.operation) not in ZERO_PADDING
        or (convolution.padding, convolution.groups) != ("valid", 1)
        or convolution.data_format != "channels_last"
    ):
        return
    config = convolution.get_config()
    layer = PaddingConv2D.from_config({**config, "zeros": before.operation.padding})
    layer.build(before.input_tensors[0].shape)
    layer.set_weights(convolution.get_weights())
    replacements[convolution] = layer
    replacements[before.operation] = lambda x: x


def open_padding(operation: keras.Operation, node) -> Callable | None:
    """What `rewrite` is to put for what `merge_padding` has made: again two layers."""
    if type(operation) is not PaddingConv2D:
        return None
    config = operation.get_config()
    pad = ZeroPadding2D(config.pop("zeros"), name=f"{operation.name}_pad")
    convolution = Conv2D.from_config(config)
    convolution.build((None, None, None, node.input_tensors[0].shape[-1]))
    convolution.set_weights(operation.get_weights())
    return lambda x: convolution(pad(x))


def _replace(node, before, replacements):
    """Adds what stands for a convolution and its padding, if anything does.

    `before` is the node before it, if that has no other purpose.
    """
    convolution, (x,) = node.operation, node.input_tensors
    zeros = convolution.padding
    pads = zeros == "valid" and before and type(before.operation) in ZERO_PADDING
    if pads:
        zeros, (x,) = before.operation.padding, before.input_tensors
    elif not isinstance(zeros, str):  # our depthwise layer, which pads both sides alike
        zeros = tuple((zero, zero) for zero in zeros)
    if isinstance(zeros, str) or getattr(convolution, "data_format", None) == "channels_first":
        return
    fits = [
        _fit(*axis)
        for axis in zip(
            x.shape[1:3],
            convolution.kernel_size,
            convolution.strides,
            convolution.dilation_rate,
            zeros,
        )
    ]
    if None in fits:
        return
    replacements[convolution] = _same(convolution, x.shape, fits)
    if pads:
        replacements[before.operation] = lambda x: x


def _fit(size, kernel, stride, rate, zeros):
    """Zeros to add in front of and behind a kernel along one axis, so that "same" pads as `zeros`
    says, or `None` if more than one would be needed."""
    front, back = zeros
    if (
        size is None
        or rate != 1
        or (size + front + back - kernel) // stride + 1 != -(-size // stride)
    ):
        return None
    for extra in (0, 1):
        total = max(kernel + extra - 1 - (size - 1) % stride, 0)
        added = total // 2 - front
        if 0 <= added <= extra:
            return added, extra - added
    return None


def _same(convolution, input_shape, fits):
    """The convolution with "same" padding and a kernel that has grown by `fits`."""
    config = convolution.get_config()
    sizes = [k + sum(fit) for k, fit in zip(convolution.kernel_size, fits)]
    layer = type(convolution).from_config({**config, "kernel_size": sizes, "padding": "same"})
    layer.build(input_shape)
    kernel, *bias = convolution.get_weights()
    layer.set_weights([np.pad(kernel, [*fits, (0, 0), (0, 0)]), *bias])
    return layer
