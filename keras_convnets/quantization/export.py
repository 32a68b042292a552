"""A quantized model as a .tflite file that has exactly its scales."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_convnets.deploy.child import on_tensorflow
from keras_convnets.deploy.export import check_model, check_packages, write_checked
from keras_convnets.deploy.litert import converter_of, run_converter, save_static
from keras_convnets.deploy.runner import INSTALL, LiteRTModel
from keras_convnets.graph.rewrite import graph_nodes, leaf_graph, rebuild
from keras_convnets.layers.rep import norm_affine, per_output, values
from keras_convnets.quantization.fake import (
    FakeQuant,
    FoldedNorm,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    kernel_scales,
)
from keras_convnets.quantization.operators import MOVES, kind_of

PRODUCTS = (QuantConv2D, QuantDense, QuantDepthwiseConv2D)
CHECKED_IMAGES = 8
LEAST_COSINE = 0.98


def export_litert(model: keras.Model, path: str | os.PathLike) -> Path:
    """Writes a quantized model as a .tflite file with exactly its scales: integers throughout, but
    for what was left in float, int8 input and output too.

    No images are needed. On the jax and torch backends a child process with the tensorflow backend
    converts a saved copy. The file is run by LiteRT's own kernels (those of XNNPACK round
    otherwise) and compared with the model before it gets its name.

    Args:
        model: what `quantize_aware` gave, trained or not; it stays as it is.
        path: the file to write; one that exists is replaced.

    Returns:
        The path.

    Raises:
        ValueError: for a model that is not quantized, a range that is zero, NaN or infinite, a
            path that cannot be written, or a file that disagrees with the model. There is no file
            then, and an older one is unchanged.
        ImportError: if tensorflow or ai-edge-litert is not installed.
    """
    check_model(model, "a .tflite")
    _check_ranges(model)
    check_packages("LiteRT", INSTALL, "tensorflow", "ai_edge_litert")
    return write_checked(
        path, lambda: on_tensorflow(convert, model), lambda part: _check_file(model, part)
    )


def _check_ranges(model):
    roundings = [layer for layer in model.layers if isinstance(layer, FakeQuant)]
    if not roundings:
        raise ValueError(
            f"model={model.name!r} is not quantized: give what quantize_aware returns, or export "
            "the float model with deploy.export_litert(..., quantize='int8')."
        )
    for layer in roundings:
        if not 0 < layer.scale() < np.inf:
            raise ValueError(
                f"layer {layer.name!r} has the range {layer.limits()}, which must be finite and "
                "wider than zero: train with finite images and a lower learning rate."
            )


def convert(model: keras.Model) -> bytes:
    """The content of the file. For the tensorflow backend, see `on_tensorflow`."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        save_static(for_inference(model), None, folder)
        converter = converter_of(folder)
        # It finds the ranges in the model and needs no images.
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return run_converter(converter, model.name)


def _check_file(model, path):
    """Raises ValueError unless file and model agree on values all over the input's range."""
    first = next(layer for layer in model.layers if isinstance(layer, FakeQuant))
    low, high = first.limits()
    random = np.random.default_rng(0)
    images = random.uniform(low, high, (CHECKED_IMAGES, *model.inputs[0].shape[1:]))
    have = LiteRTModel(path, xnnpack=False).predict(images)
    want = [
        keras.ops.convert_to_numpy(y)
        for y in keras.tree.flatten(model(images.astype("float32"), training=False))
    ]
    for i, (ours, theirs) in enumerate(zip(want, have, strict=True)):
        ours, theirs = ours.ravel().astype("float64"), theirs.ravel().astype("float64")
        size = max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-30)
        if ours.shape != theirs.shape or not ours @ theirs >= LEAST_COSINE * size:
            raise ValueError(
                f"model={model.name!r} and its LiteRT form disagree in output {i}: the cosine is "
                f"{ours @ theirs / size:.4f}, less than {LEAST_COSINE}; nothing was written."
            )


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
        self.consumers = {}
        for node in self.nodes:
            for x in node.input_tensors:
                self.consumers.setdefault(id(x), []).append(node)
        self.ranges = {}  # id of a tensor: the FakeQuant that it is rounded by
        self.built = {}
        for node in self.nodes:
            x, y = node.input_tensors[0], node.outputs[0]
            if isinstance(node.operation, FakeQuant):
                self.ranges[id(y)] = node.operation
            elif kind_of(node.operation) in MOVES and id(x) in self.ranges:
                self.ranges.update((id(y), self.ranges[id(x)]) for y in node.outputs)

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
            layer = FakeQuant.from_config(operation.get_config())
            layer.build(())
            layer.set_weights(operation.get_weights())
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
    steps = step * kernel_scales(kernel, layer.bits, isinstance(layer, QuantDepthwiseConv2D))
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
