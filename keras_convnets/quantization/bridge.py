"""Models in tf_keras, the only Keras that tensorflow-model-optimization takes, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, reduce

import keras
import numpy as np
from keras import layers

from keras_convnets.deploy.export import check_float32, check_packages
from keras_convnets.graph.padding import open_padding
from keras_convnets.graph.reparameterize import reparameterize
from keras_convnets.graph.rewrite import graph_nodes, in_turn, leaf_graph, rewrite
from keras_convnets.layers.fast import (
    AVERAGE_POOLING,
    BATCH_NORM,
    CONV2D,
    DENSE,
    LAYER_NORM,
    MEAN_OF_MAP,
    ZERO_PADDING,
)
from keras_convnets.quantization.operators import kind_of

INSTALL = 'pip install "keras-convnets[tfmot]"'
WRAPPERS = {
    "prune_low_magnitude_": "give tfmot.sparsity.keras.strip_pruning(tf_model)",
    "cluster_": "give tfmot.clustering.keras.strip_clustering(tf_model)",
    "quant_": "convert it with tf.lite.TFLiteConverter.from_keras_model, or train with "
    "quantization.quantize_aware instead",
}

_WINDOW = ("kernel_size", "strides", "padding", "data_format", "dilation_rate", "use_bias")
_CONVOLUTION = ("filters", "groups", *_WINDOW)
_POOLING = ("pool_size", "strides", "padding", "data_format")
_GLOBAL_POOLING = ("data_format", "keepdims")
# Layers that tf_keras has too, and the arguments that say what they compute. Exact types: a
# subclass may compute something else.
_SAME = {
    layers.Add: (),
    layers.Average: (),
    layers.AveragePooling1D: _POOLING,
    **dict.fromkeys(AVERAGE_POOLING, _POOLING),
    **dict.fromkeys(BATCH_NORM, ("axis", "momentum", "epsilon", "center", "scale")),
    layers.Concatenate: ("axis",),
    layers.Conv1D: _CONVOLUTION,
    **dict.fromkeys(CONV2D, _CONVOLUTION),
    layers.Conv2DTranspose: ("filters", "output_padding", *_WINDOW),
    layers.Cropping2D: ("cropping", "data_format"),
    **dict.fromkeys(DENSE, ("units", "use_bias")),
    layers.Dropout: ("rate", "noise_shape", "seed"),
    layers.GlobalAveragePooling1D: _GLOBAL_POOLING,
    **dict.fromkeys(MEAN_OF_MAP, _GLOBAL_POOLING),
    layers.GlobalMaxPooling1D: _GLOBAL_POOLING,
    layers.GlobalMaxPooling2D: _GLOBAL_POOLING,
    **dict.fromkeys(LAYER_NORM, ("axis", "epsilon", "center", "scale")),
    layers.MaxPooling1D: _POOLING,
    layers.MaxPooling2D: _POOLING,
    layers.Maximum: (),
    layers.Minimum: (),
    layers.Multiply: (),
    layers.Permute: ("dims",),
    layers.ReLU: ("max_value", "negative_slope", "threshold"),
    layers.SeparableConv2D: ("filters", "depth_multiplier", *_WINDOW),
    layers.SpatialDropout2D: ("rate", "data_format"),
    layers.Subtract: (),
    layers.UpSampling2D: ("size", "data_format", "interpolation"),
    **dict.fromkeys(ZERO_PADDING, ("padding", "data_format")),
}


def to_tf_keras(model: keras.Model):
    """A model rebuilt in tf_keras with the same weights, for tensorflow-model-optimization: its
    `quantize_model`, `prune_low_magnitude` and `cluster_weights`.

    Parallel branches are merged first (`graph.reparameterize`); BatchNormalizations stay, so that
    it can be trained on. Layers have the names of the flat graph, `stage0_block1_mlp_fc1`. Each is
    of a type that tensorflow-model-optimization prunes and clusters. Its `quantize_model` knows
    fewer, and names the first other: no products of tensors, hence no squeeze-excite, no hard-swish
    or `Conv1D`, and of normalisations a BatchNormalization after a convolution only. Regularizers
    and constraints stay behind. Works on every backend; TensorFlow is imported here.

    Args:
        model: a Functional or Sequential model of this package or your own, in float32, with known
            input sizes; it stays as it is.

    Returns:
        A `tf_keras.Model`, outputs equal but for rounding.

    Raises:
        ValueError: for open input sizes, another precision, and layers or operations that have no
            counterpart (of attention, say), all named by their path; as `graph.flatten`.
        ImportError: if tf_keras is not installed.
    """
    check_packages("tf_keras", INSTALL, "tensorflow", "tf_keras")
    _check(model)
    with leaf_graph(_plain(model)) as graph:
        return _Replay(graph).model()


def _plain(model):
    """Merged branches, and padding in layers of its own."""
    return in_turn(model, reparameterize, lambda merged: rewrite(merged, open_padding))


def from_tf_keras(tf_model, model: keras.Model) -> keras.Model:
    """A flat copy of a model with the weights of its tf_keras form after training, pruning or
    clustering there.

    Zeros stay zeros also where a BatchNormalization is folded later; equal weights then stay equal
    within an output channel only.

    Args:
        tf_model: what `to_tf_keras(model)` gave, or `strip_pruning` and `strip_clustering` of
            tensorflow-model-optimization.
        model: the model that it was made from; it stays as it is.

    Raises:
        ValueError: for a model with the wrappers of tensorflow-model-optimization, and for layers
            that are missing or of other shapes, named by their path.
    """
    flat = _plain(model)
    theirs = {layer.name: layer for layer in tf_model.layers}
    unknown = theirs.keys() - {layer.name for layer in flat.layers}
    for prefix, remedy in WRAPPERS.items():
        wrapped = sorted(name for name in unknown if name.startswith(prefix))
        if wrapped:
            raise ValueError(
                f"tf_model={tf_model.name!r} has {len(wrapped)} wrapped layers, {wrapped[0]!r} one "
                f"of them: {remedy}."
            )
    for layer in flat.layers:
        if not layer.weights:
            continue
        if layer.name not in theirs:
            raise ValueError(
                f"tf_model={tf_model.name!r} has no layer {layer.name!r}: give what was made by "
                f"to_tf_keras from this model={model.name!r}, with its layers named as they were."
            )
        weights, wanted = theirs[layer.name].get_weights(), [tuple(v.shape) for v in layer.weights]
        if [np.size(w) for w in weights] != [math.prod(shape) for shape in wanted]:
            raise ValueError(
                f"layer {layer.name!r} has weights of the shapes {[w.shape for w in weights]} in "
                f"tf_model={tf_model.name!r}, {wanted} in model={model.name!r}."
            )
        layer.set_weights([np.reshape(w, shape) for w, shape in zip(weights, wanted)])
    return flat


def _check(model):
    for tensor in getattr(model, "inputs", None) or ():
        if None in tensor.shape[1:] or tensor.dtype != "float32":
            raise ValueError(
                f"input {tensor.name!r} has shape {tensor.shape} and type {tensor.dtype}: build "
                "the model with input_shape=(height, width, channels), all of them known, and "
                "inputs of type 'float32'."
            )
    check_float32(model)


class _Replay:
    """A graph of leaf layers and operations, in layers of tf_keras."""

    def __init__(self, graph: keras.Model):
        import tf_keras

        self.tf_keras = tf_keras
        self.graph = graph
        self.nodes = graph_nodes(graph)
        self.names = {node.operation.name for node in self.nodes}
        self.forms = {}
        self.weighted = {}

    def model(self):
        forms = [self._form(node) for node in self.nodes]
        self._check_forms(forms)
        inputs = [self.tf_keras.Input(batch_shape=x.shape, name=x.name) for x in self.graph.inputs]
        tensors = {id(old): new for old, new in zip(self.graph.inputs, inputs)}
        for node, form in zip(self.nodes, forms):
            outputs = form(*(tensors[id(x)] for x in node.input_tensors))
            outputs = outputs if isinstance(outputs, list) else [outputs]
            tensors.update((id(old), new) for old, new in zip(node.outputs, outputs))
        ends = keras.tree.map_structure(lambda x: tensors[id(x)], self.graph.output)
        starts = keras.tree.map_structure(lambda x: tensors[id(x)], self.graph.input)
        model = self.tf_keras.Model(starts, ends, name=self.graph.name)
        for operation, layer in self.weighted.items():
            shapes = [w.shape for w in layer.weights]
            values = [keras.ops.convert_to_numpy(v) for v in operation.weights]
            layer.set_weights([np.reshape(v, shape) for v, shape in zip(values, shapes)])
        return model

    def _check_forms(self, forms):
        unknown = {
            node.operation.name: type(node.operation).__name__
            for node, form in zip(self.nodes, forms)
            if form is None
        }
        if unknown:
            listed = ", ".join(f"{name} ({kind})" for name, kind in unknown.items())
            raise ValueError(
                f"model={self.graph.name!r} has operators without a counterpart in tf_keras that "
                f"tensorflow-model-optimization takes: {listed}. Replace them, or give the part of "
                "the model before or after them, a keras.Model of its own."
            )

    def _form(self, node) -> Callable | None:
        """A function of the tf_keras tensors of a node's inputs, with one layer for all calls of a
        layer; `None` if there is none."""
        operation = node.operation
        if operation not in self.forms:
            self.names.discard(operation.name)  # for its layer to take
        # Without weights there is nothing to share, and what it does may hang on the shape.
        if operation not in self.forms or not getattr(operation, "weights", ()):
            self.forms[operation] = self._new_form(node)
        form, training = self.forms[operation], node.arguments.kwargs.get("training")
        if form is None or training is None:
            return form
        return lambda *xs: form(*xs, training=training)

    def _new_form(self, node):
        operation = node.operation
        if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_rank", None):
            return None
        kind = kind_of(operation)
        if kind in _FORMS:
            return _FORMS[kind](self, node)
        if type(operation) in _SAME:
            return self._same(operation)
        return self._activation(operation, kind)

    def layer(self, kind: str, name: str, *args, **kwargs):
        """A new layer of tf_keras, by a name that no other layer has."""
        taken, count = name, 1
        while taken in self.names:
            count += 1
            taken = f"{name}_{count}"
        self.names.add(taken)
        return getattr(self.tf_keras.layers, kind)(*args, name=taken, **kwargs)

    def named(self, operation, kind, **kwargs):
        """The layer that bears an operation's name, and takes over its weights."""
        layer = self.layer(kind, operation.name, trainable=operation.trainable, **kwargs)
        if operation.weights:
            self.weighted[operation] = layer
        return layer

    def _same(self, operation):
        if getattr(operation, "rms_scaling", False):
            return None
        arguments = {name: getattr(operation, name) for name in _SAME[type(operation)]}
        layer = self.named(operation, type(operation).__name__, **arguments)
        if getattr(operation, "activation", None) in (None, keras.activations.linear):
            return lambda *xs, **training: layer(list(xs) if len(xs) > 1 else xs[0], **training)
        name = getattr(operation.activation, "__name__", "")
        after = self._activation_layer(name, f"{operation.name}_activation")
        return after and _chain(layer, after)

    def _activation(self, operation, kind):
        if getattr(operation, "axis", -1) != -1 or getattr(operation, "alpha", 1) != 1:
            return None
        if kind == "leaky_relu":
            slope = getattr(operation, "negative_slope", 0.2)
            return self.layer("LeakyReLU", operation.name, alpha=slope)
        if getattr(operation, "approximate", False):
            kind = "gelu_tanh"
        return self._activation_layer(kind, operation.name)

    def _activation_layer(self, kind, name):
        if kind in ("relu", "relu6"):
            return self.layer("ReLU", name, {"relu": None, "relu6": 6.0}[kind])
        activation = _activations().get(kind)
        return activation and self.layer("Activation", name, activation)

    def affine(self, name, channels, factors, summands=0.0):
        """x * factors + summands per channel of a map.

        A depthwise convolution, whose weights neither pruning nor clustering touches.
        """
        ones = np.ones(channels, "float32")
        layer = self.layer("DepthwiseConv2D", name, 1, trainable=False)
        layer.build((None, None, None, channels))
        layer.set_weights([(ones * factors)[None, None, :, None], ones * summands])
        return layer


def _chain(*steps):
    return lambda x: reduce(lambda value, step: step(value), steps, x)


@cache
def _activations():
    """The activations of tf_keras by their names here, and those that it lacks, registered for it
    to find when it copies a model. Its own hard_sigmoid is another function."""
    import tensorflow as tf
    import tf_keras

    register = tf_keras.utils.register_keras_serializable("keras_convnets")

    @register
    def gelu_tanh(x):
        return tf.nn.gelu(x, approximate=True)

    @register
    def hard_sigmoid(x):
        return tf.nn.relu6(x + 3.0) / 6.0

    @register
    def hard_silu(x):
        return x * hard_sigmoid(x)

    known = ("elu", "gelu", "linear", "selu", "sigmoid", "softmax", "softplus", "tanh")
    return {name: name for name in known} | {
        "gelu_tanh": gelu_tanh,
        "hard_sigmoid": hard_sigmoid,
        "hard_silu": hard_silu,
        "silu": "swish",
    }


# Functions of a `_Replay` and a node: the form of the node's operation, `None` if there is none.
def _depthwise(replay, node):
    layer = node.operation
    if layer.strides[0] != layer.strides[1] or getattr(layer, "activation", None) not in (
        None,
        keras.activations.linear,
    ):
        return None
    is_named = isinstance(layer.padding, str)
    convolution = replay.named(
        layer,
        "DepthwiseConv2D",
        kernel_size=layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding if is_named else "valid",
        depth_multiplier=getattr(layer, "depth_multiplier", 1),
        data_format=getattr(layer, "data_format", "channels_last"),
        dilation_rate=layer.dilation_rate,
        use_bias=layer.use_bias,
    )
    if is_named or not any(layer.padding):
        return convolution
    return _chain(replay.layer("ZeroPadding2D", f"{layer.name}_pad", layer.padding), convolution)


def _blur(replay, node):
    channels, name = node.outputs[0].shape[-1], node.operation.name
    pad = replay.layer("ZeroPadding2D", f"{name}_pad", node.operation.padding)
    blur = replay.layer("DepthwiseConv2D", name, 3, 2, use_bias=False, trainable=False)
    blur.build((None, None, None, channels))
    binomial = np.outer((1, 2, 1), (1, 2, 1)) / 16
    blur.set_weights([np.tile(binomial[:, :, None, None], (1, 1, channels, 1))])
    return _chain(pad, blur)


def _layer_scale(replay, node):
    if len(node.outputs[0].shape) != 4:
        return None
    return replay.named(node.operation, "DepthwiseConv2D", kernel_size=1, use_bias=False)


def _rescaling(replay, node):
    layer, shape = node.operation, node.outputs[0].shape
    if len(shape) != 4:
        return None
    return replay.affine(layer.name, shape[-1], layer.scale, layer.offset)


def _drop_path(replay, node):
    noise_shape = (None,) + (1,) * (len(node.outputs[0].shape) - 1)
    return replay.layer("Dropout", node.operation.name, node.operation.rate, noise_shape)


def _identity(replay, node):
    return replay.layer("Activation", node.operation.name, "linear")


def _enlarge(replay, node):
    """Of a layer that enlarges maps below a size."""
    is_large = node.input_tensors[0].shape == node.outputs[0].shape
    return _identity(replay, node) if is_large else None


def _twice(replay, node):
    (small, _), (large,) = node.input_tensors, node.outputs
    if [2 * size for size in small.shape[1:3]] != list(large.shape[1:3]):
        return None
    enlarge = replay.layer("UpSampling2D", node.operation.name, 2)
    return lambda x, like: enlarge(x)


def _reshape(replay, node):
    return replay.layer("Reshape", node.operation.name, node.outputs[0].shape[1:])


def _transpose(replay, node):
    axes = node.operation.axes
    if axes is None or axes[0] != 0:
        return None
    return replay.layer("Permute", node.operation.name, axes[1:])


def _shuffle(replay, node):
    shape, name = node.outputs[0].shape[1:], node.operation.name
    groups = node.operation.groups
    return _chain(
        replay.layer("Reshape", f"{name}_deal", (*shape[:2], groups, shape[2] // groups)),
        replay.layer("Permute", f"{name}_swap", (1, 2, 4, 3)),
        replay.layer("Reshape", name, shape),
    )


def _reduction(kind):
    def form(replay, node):
        if isinstance(node.operation, keras.Layer) or len(node.input_tensors[0].shape) != 4:
            return None
        axes = [axis % 4 for axis in np.ravel(node.operation.axis or [])]
        keepdims = node.operation.keepdims
        if sorted(axes) != [1, 2]:
            return None
        return replay.layer(kind, node.operation.name, keepdims=keepdims)

    return form


def _merge(kind):
    """Of a product or a sum of two tensors, or of a map and numbers, one for all or a channel."""

    def form(replay, node):
        name, numbers = node.operation.name, _numbers(node)
        if len(node.input_tensors) > 1:
            ranks = {len(x.shape) for x in node.input_tensors}
            merge = replay.layer(kind, name)
            return (lambda *xs: merge(list(xs))) if len(ranks) == 1 else None
        channels = node.outputs[0].shape[-1]
        if len(node.outputs[0].shape) != 4 or np.shape(numbers) not in ((), (1,), (channels,)):
            return None
        if kind == "Multiply":
            return replay.affine(name, channels, numbers)
        return replay.affine(name, channels, 1.0, numbers)

    return form


def _numbers(node):
    """The operand of an operation that is no tensor of the graph."""
    for value in (*node.arguments.args, *node.arguments.kwargs.values()):
        if not isinstance(value, keras.KerasTensor | list | tuple) and value is not None:
            return keras.ops.convert_to_numpy(value)
    return None


def _concatenate(replay, node):
    join = replay.layer("Concatenate", node.operation.name, node.operation.axis)
    return lambda *xs: join(list(xs))


def _slice(replay, node):
    _, key = node.arguments.args
    shape = node.input_tensors[0].shape
    # A new axis does not change what is read, and the shape of the output tells where it is.
    key = [part for part in (key if isinstance(key, tuple) else (key,)) if part is not None]
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key[at : at + 1] = [slice(None)] * (len(shape) - len(key) + 1)
    key += [slice(None)] * (len(shape) - len(key))
    if key[0] != slice(None):
        return None
    crops = []
    for size, part in zip(shape[1:], key[1:]):
        if isinstance(part, int):
            part = slice(part % size, part % size + 1)
        if not isinstance(part, slice) or part.step not in (None, 1):
            return None
        start, stop, _ = part.indices(size)
        crops.append((start, size - stop))
    return _cropped(replay, node.operation.name, shape, crops, node.outputs[0].shape)


def _cropped(replay, name, shape, crops, target):
    """A part of a tensor: `crops` has what to leave out at the ends of each axis but the first."""
    steps = []
    if any(map(any, crops)):
        if len(shape) != 4:
            return None
        if any(map(any, crops[:2])):
            steps.append(replay.layer("Cropping2D", f"{name}_map", crops[:2]))
        if any(crops[2]):  # of "channels_first" the last two axes are cropped, and the last is ours
            ends = ((0, 0), crops[2])
            steps.append(
                replay.layer("Cropping2D", f"{name}_part", ends, data_format="channels_first")
            )
    if len(shape) != len(target) or not steps:
        steps.append(replay.layer("Reshape", name, target[1:]))
    return _chain(*steps)


def _split(replay, node):
    (x,), axis = node.input_tensors, node.operation.axis % len(node.input_tensors[0].shape)
    if axis == 0:
        return None
    start, parts = 0, []
    for i, y in enumerate(node.outputs):
        crops = [(0, 0)] * (len(x.shape) - 1)
        crops[axis - 1] = (start, x.shape[axis] - start - y.shape[axis])
        parts.append(_cropped(replay, f"{node.operation.name}_{i}", x.shape, crops, y.shape))
        start += y.shape[axis]
    return None if None in parts else lambda x: [part(x) for part in parts]


# By the name of the operation, be it a layer or of `keras.ops`.
_FORMS = {
    "Add": _merge("Add"),
    "BlurPool2D": _blur,
    "ChannelShuffle": _shuffle,
    "Concatenate": _concatenate,
    "DepthwiseConv2D": _depthwise,
    "DropPath": _drop_path,
    "EnlargeSmallMap": _enlarge,
    "ExpandDims": _reshape,
    "Flatten": _reshape,
    "GetItem": _slice,
    "Identity": _identity,
    "LayerScale": _layer_scale,
    "Max": _reduction("GlobalMaxPooling2D"),
    "Mean": _reduction("GlobalAveragePooling2D"),
    "Multiply": _merge("Multiply"),
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "TwiceAsLarge": _twice,
}
