"""A quantized model as the device holds it: nothing left to train, each tensor rounded."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.graph.rewrite import consumers_of, graph_nodes, leaf_graph, rebuild
from keras_convnets.layers.fake_quant import (
    FakeQuant,
    FoldedNorm,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    ReciprocalRoot,
    kernel_scales,
    rounded_kernel,
)
from keras_convnets.layers.rep import norm_affine, per_output, values
from keras_convnets.quantization.operators import MOVES, kind_of, ranges_of

PRODUCTS = (QuantConv2D, QuantDense, QuantDepthwiseConv2D)


def for_inference(model: keras.Model) -> keras.Model:
    """A flat copy of a quantized model with each BatchNormalization folded, each tensor rounded
    where LiteRT holds it, and dense layers as 1x1 convolutions, whose kernels LiteRT knows per
    channel."""
    with leaf_graph(model) as graph:
        form = _Form(graph)
        return rebuild(graph, form.replace, form.follow)


class _Form:
    """What the operations become, and the range of each tensor."""

    def __init__(self, graph):
        self.nodes = graph_nodes(graph)
        self.consumers = consumers_of(self.nodes)
        self.ranges = ranges_of(self.nodes)
        self.built = {}

    def replace(self, operation, node):
        """What `rebuild` asks."""
        if isinstance(operation, FakeQuant):
            return self._rounding(operation)
        if isinstance(operation, FoldedNorm):
            return lambda x, mask=None: x
        if isinstance(operation, PRODUCTS):
            return self._product(operation, node)
        if kind_of(operation) == "Concatenate":
            return self._concatenation(operation, node)
        if type(operation) is ReciprocalRoot and id(node.input_tensors[0]) in self.ranges:
            return ReciprocalRoot(name=operation.name)
        return None

    def follow(self, tensor, new):
        """What `rebuild` asks about the tensors: those that only move are rounded again, which
        changes nothing but tells the converter what it does not find out."""
        node = new._keras_history.operation
        if id(tensor) in self.ranges and kind_of(node) in MOVES:
            return self._rounding(self.ranges[id(tensor)])(new, observe=False)
        return new

    def _rounding(self, operation):
        if operation not in self.built:
            layer = FakeQuant(fixed=True, bits=operation.bits, name=operation.name)
            layer.build(())
            layer.set_range(*operation.limits())
            self.built[operation] = layer
        return self.built[operation]

    def _concatenation(self, operation, node):
        (after,) = self.consumers[id(node.outputs[0])]
        rounding = self._rounding(after.operation)
        copy = type(operation).from_config(operation.get_config())
        return lambda xs: copy([rounding(x, observe=False) for x in xs])

    def _product(self, layer, node):
        if layer not in self.built:
            followers = self.consumers.get(id(node.outputs[0]), ())
            norms = [n.operation for n in followers if isinstance(n.operation, FoldedNorm)]
            (x,) = node.input_tensors
            step = self.ranges[id(x)].scale()
            self.built[layer] = _folded(layer, norms[0] if norms else None, node, step)
        return self.built[layer]


def _folded(layer, norm, node, step):
    """A product with its BatchNormalization in kernel and bias, and the bias rounded to a multiple
    of the steps of input and kernel, as int32 holds it."""
    kernel = values(layer.kernel)
    shift = 0.0 if layer.bias is None else values(layer.bias)
    if norm is not None:
        scale, center = norm_affine(norm)
        kernel, shift = kernel * per_output(layer, scale), shift * scale + center
    kernel = kernel.astype("float32")
    depthwise = isinstance(layer, QuantDepthwiseConv2D)
    steps = step * kernel_scales(kernel, layer.bits, depthwise)
    # The converter may take a weight in the middle of two steps to the other one.
    kernel = rounded_kernel(kernel, layer.bits, depthwise)
    integers = np.round(shift / steps)
    if not (np.abs(integers) < 2**31).all():
        raise ValueError(
            f"layer {layer.name!r} has a bias that no int32 holds beside weights next to zero: "
            "train it on, or leave it in float by keep_float."
        )
    shift = integers * steps
    shape = node.input_tensors[0].shape
    config = layer.get_config() | {"use_bias": layer.use_bias or norm is not None}
    if isinstance(layer, QuantDense):
        return _pointwise(config, kernel, shift, shape, node.outputs[0].shape)
    folded = type(layer).from_config(config)
    folded.build(shape)
    folded.set_weights([kernel, shift] if config["use_bias"] else [kernel])
    return folded


def _pointwise(config, kernel, bias, input_shape, output_shape):
    convolution = QuantConv2D(
        config["units"], 1, use_bias=config["use_bias"], bits=config["bits"], name=config["name"]
    )
    convolution.build((None, 1, 1, input_shape[-1]))
    convolution.set_weights(
        [kernel[None, None], bias] if config["use_bias"] else [kernel[None, None]]
    )

    def multiply(x):
        x = ops.reshape(x, (-1, int(np.prod(input_shape[1:-1])), 1, input_shape[-1]))
        return ops.reshape(convolution(x), (-1, *output_shape[1:]))

    return multiply
