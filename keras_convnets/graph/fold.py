"""BatchNorm at inference: a factor and a summand per channel, which other layers take over."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_convnets.graph.rewrite import consumers_of, graph_nodes, leaf_graph, rebuild
from keras_convnets.layers.fast import (
    ACTIVATION,
    AVERAGE_POOLING,
    BATCH_NORM,
    CONV2D,
    DENSE,
    MEAN_OF_MAP,
)
from keras_convnets.layers.leaves import DropPath
from keras_convnets.layers.rep import DEPTHWISE, TRANSPOSED, norm_affine, per_output

# All comparisons are of exact types: a subclass may do something else with its kernel.
CONVOLUTIONS = (layers.Conv1D, *CONV2D, layers.Conv3D)
FOLDS_NORM_AFTER = (*CONVOLUTIONS, *DEPTHWISE, *TRANSPOSED, *DENSE)
FOLDS_NORM_BEFORE = (*CONVOLUTIONS, *DEPTHWISE, *DENSE, *BATCH_NORM)
# A factor and a summand per channel may move across these.
IDENTITIES = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    DropPath,
)
GLOBAL_AVERAGES = (
    layers.GlobalAveragePooling1D,
    *MEAN_OF_MAP,
    layers.GlobalAveragePooling3D,
)
AVERAGES = (layers.AveragePooling1D, *AVERAGE_POOLING, layers.AveragePooling3D)
MAXIMA = (layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)


def fold_batchnorm(model: keras.Model) -> keras.Model:
    """A flat copy of a model whose BatchNormalizations the layers around them have taken over.

    Each goes into the convolution (transposed, depthwise) or dense layer before it, or else into
    the convolution, dense layer or BatchNormalization after it, wherever that is exact at
    inference: nothing else uses the tensors in between; in between stand only dropout, average
    pooling and such; no activation comes before the BatchNormalization, no zeros are padded after
    it. Elsewhere it stays. A layer that is called several times is changed if that is right for all
    of its calls. The result is for inference; its outputs differ from the model's by rounding only.

    Args:
        model: as in `graph.flatten`; it stays as it is, and the result has weights of its own.

    Raises:
        ValueError: as `graph.flatten`.
    """
    with leaf_graph(model) as graph:
        plan = _Plan(graph)
        for operation in dict.fromkeys(node.operation for node in plan.nodes):
            if type(operation) in BATCH_NORM:
                plan.fold(operation)
        return rebuild(graph, plan.replace)


@dataclasses.dataclass(frozen=True)
class _Affine:
    """x * scale + shift, with vectors over one axis of x, counted from 0."""

    scale: np.ndarray
    shift: np.ndarray
    axis: int


class _Plan:
    """Which BatchNormalizations go, and the layers that take them over."""

    def __init__(self, graph: keras.Model):
        self.nodes = graph_nodes(graph)
        self.calls = Counter(node.operation for node in self.nodes)
        self.producer = {id(x): node for node in self.nodes for x in node.outputs}
        self.consumers = consumers_of(self.nodes)
        self.outputs = set(map(id, graph.outputs))
        self.folded = set()
        self.changed = {}  # operation: its `_Linear` or `_Norm`
        self.built = {}

    def fold(self, norm: layers.BatchNormalization) -> None:
        """Folds into the layers before all calls of a BatchNormalization, or after all, if any."""
        calls = [node for node in self.nodes if node.operation is norm]
        if not all(map(_is_inference, calls)):
            return
        changed = self.changed.get(norm)
        scale, shift = (changed.scale, changed.shift) if changed else norm_affine(norm)
        affines = [_Affine(scale, shift, norm.axis % len(c.outputs[0].shape)) for c in calls]
        for search, absorb in ((self._before, "absorb_after"), (self._after, "absorb_before")):
            found = [search(call, affine) for call, affine in zip(calls, affines)]
            if None in found:
                continue
            arrived = Counter(node.operation for node, _ in found)
            if any(self.calls[operation] != count for operation, count in arrived.items()):
                continue
            for node, affine in {node.operation: (node, a) for node, a in found}.values():
                getattr(self._change(node), absorb)(affine)
            self.folded.add(norm)
            return

    def replace(self, operation: keras.Operation, node) -> Callable | None:
        """What `rebuild` asks."""
        if operation in self.folded:
            return lambda x, **inference: x
        if operation in self.changed and operation not in self.built:
            self.built[operation] = self.changed[operation].build()
        return self.built.get(operation)

    def _change(self, node):
        if node.operation not in self.changed:
            kind = _Norm if type(node.operation) in BATCH_NORM else _Linear
            self.changed[node.operation] = kind(node)
        return self.changed[node.operation]

    def _before(self, node, affine):
        """The call before a BatchNormalization's that can take it over, and what arrives there."""
        while self._is_private(x := node.input_tensors[0]) and id(x) in self.producer:
            node = self.producer[id(x)]
            if _folds_norm_after(node, affine):
                return node, affine
            affine = self._across(node, affine, forwards=False)
            if affine is None:
                return None
        return None

    def _after(self, node, affine):
        """The call after a BatchNormalization's that can take it over, and what arrives there."""
        while self._is_private(x := node.outputs[0]):
            (node,) = self.consumers[id(x)]
            if _folds_norm_before(node, affine):
                return node, affine
            affine = self._across(node, affine, forwards=True)
            if affine is None:
                return None
        return None

    def _is_private(self, tensor):
        return id(tensor) not in self.outputs and len(self.consumers[id(tensor)]) == 1

    def _across(self, node, affine, forwards):
        """The same on the other side of a call, `None` if there is no such thing."""
        if not _is_inference(node):
            return None
        layer, kind = node.operation, type(node.operation)
        if layer in self.folded or kind in IDENTITIES or _is_linear_activation(layer):
            return affine
        x, y = node.input_tensors[0], node.outputs[0]
        if kind is layers.Flatten and forwards and affine.axis == len(x.shape) - 1:
            positions = y.shape[1] and y.shape[1] // x.shape[-1]
            return positions and _Affine(
                np.tile(affine.scale, positions), np.tile(affine.shift, positions), 1
            )
        if (
            kind in GLOBAL_AVERAGES
            or (kind in AVERAGES and layer.padding == "valid")
            or (kind in MAXIMA and set(layer.pool_size) == {1})
        ):
            here, there = (x, y) if forwards else (y, x)
            if affine.axis == _channel_axis(layer, here):
                return dataclasses.replace(affine, axis=_channel_axis(layer, there))
        return None


def _is_inference(node):
    """Whether a layer is called on one tensor, and not with `training=True`."""
    others = [*node.arguments.args[1:], *node.arguments.kwargs.values()]
    return len(node.input_tensors) == 1 and all(x is None or x is False for x in others)


def _is_linear_activation(layer):
    return type(layer) in ACTIVATION and layer.activation is keras.activations.linear


def _channel_axis(layer, tensor):
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 1 if first else len(tensor.shape) - 1


def _folds_norm_after(node, affine):
    layer = node.operation
    return (
        type(layer) in FOLDS_NORM_AFTER
        and _is_float(layer)
        and getattr(layer, "activation", None) in (None, keras.activations.linear)
        and affine.axis == _channel_axis(layer, node.outputs[0])
    )


def _folds_norm_before(node, affine):
    layer, x = node.operation, node.input_tensors[0]
    if type(layer) not in FOLDS_NORM_BEFORE or not _is_inference(node) or not _is_float(layer):
        return False
    if type(layer) in BATCH_NORM:
        return affine.axis == layer.axis % len(x.shape)
    return affine.axis == _channel_axis(layer, x) and not _pads(layer, x.shape)


def _is_float(layer):
    return layer.quantization_mode is None


def _pads(layer, shape):
    """Whether zeros are added to an input of a shape, none of whose sizes need be known."""
    padding = getattr(layer, "padding", "valid")
    if padding == "valid":
        return False
    if not isinstance(padding, str):
        return any(padding)
    first = _channel_axis(layer, keras.KerasTensor(shape)) == 1
    return any(
        reach > 0 and (padding != "same" or size is None or _same_pads(size, reach, stride))
        for size, reach, stride in zip(
            shape[2:] if first else shape[1:-1],
            [(k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation_rate)],
            layer.strides,
        )
    )


def _same_pads(size, reach, stride):
    return (math.ceil(size / stride) - 1) * stride + reach + 1 > size


class _Linear:
    """A convolution or dense layer that takes affines over. Kernels are large: held in float32."""

    def __init__(self, node):
        layer, self.input_shape = node.operation, node.input_tensors[0].shape
        self.layer = layer
        self.kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float32")
        self.bias = np.zeros(node.outputs[0].shape[_channel_axis(layer, node.outputs[0])])
        if layer.bias is not None:
            self.bias += keras.ops.convert_to_numpy(layer.bias)

    def absorb_after(self, affine: _Affine) -> None:
        self.kernel = self.kernel * per_output(self.layer, affine.scale).astype("float32")
        self.bias = self.bias * affine.scale + affine.shift

    def absorb_before(self, affine: _Affine) -> None:
        shifts = self.kernel * self._per_input(affine.shift)
        depthwise = isinstance(self.layer, DEPTHWISE)
        self.bias += shifts.sum(axis=tuple(range(shifts.ndim - 1 - depthwise))).ravel()
        self.kernel = self.kernel * self._per_input(affine.scale).astype("float32")

    def _per_input(self, vector):
        """A vector over the input channels, shaped so that it multiplies the kernel."""
        groups = getattr(self.layer, "groups", 1)
        if groups == 1:
            return vector[:, None]
        return np.repeat(vector.reshape(groups, -1), self.kernel.shape[-1] // groups, axis=0).T

    def build(self) -> keras.Layer:
        config = {**self.layer.get_config(), "use_bias": True}
        config.pop("lora_rank", None)  # merged into the kernel
        layer = type(self.layer).from_config(config)
        layer.build(self.input_shape)
        layer.kernel.assign(self.kernel)
        layer.bias.assign(self.bias)
        return layer


class _Norm:
    """A BatchNormalization that takes over the one before it."""

    def __init__(self, node):
        self.layer, self.input_shape = node.operation, node.input_tensors[0].shape
        self.scale, self.shift = norm_affine(self.layer)

    def absorb_before(self, affine: _Affine) -> None:
        self.shift = self.scale * affine.shift + self.shift
        self.scale = self.scale * affine.scale

    def build(self) -> layers.BatchNormalization:
        changes = {"scale": True, "center": True, "renorm": False}
        layer = type(self.layer).from_config({**self.layer.get_config(), **changes})
        layer.build(self.input_shape)
        layer.gamma.assign(self.scale * np.sqrt(1 + layer.epsilon))
        layer.beta.assign(self.shift)
        layer.moving_mean.assign(np.zeros_like(self.shift))
        layer.moving_variance.assign(np.ones_like(self.scale))
        return layer
