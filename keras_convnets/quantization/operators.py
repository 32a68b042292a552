"""A model in the operators that LiteRT runs in integers, and what each does to the range."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

from keras_convnets.graph.fold import fold_batchnorm
from keras_convnets.graph.lower import (
    MOST_TAPS,
    affine,
    lower_products,
    normalized_axes,
    once,
    open_layer_scale,
    open_star_relu,
)
from keras_convnets.graph.padding import open_padding
from keras_convnets.graph.reparameterize import reparameterize
from keras_convnets.graph.rewrite import graph_nodes, in_turn, leaf_graph, rebuild, rewrite
from keras_convnets.layers.depthwise import BlurPool2D, DepthwiseConv2D
from keras_convnets.layers.fake_quant import FakeQuant, FoldedNorm, ReciprocalRoot
from keras_convnets.layers.fast import ACTIVATION, BATCH_NORM, CONV2D, DENSE, Conv2D
from keras_convnets.layers.leaves import GlobalResponseNorm, SkipInit
from keras_convnets.layers.rep import norm_affine

# Exact types: a subclass may do something else with its kernel.
DEPTHWISE = (layers.DepthwiseConv2D, DepthwiseConv2D)
PRODUCTS = (*CONV2D, *DENSE, *DEPTHWISE)

# By the name of the operation, be it a layer or of `keras.ops`.
# The output holds values of the input only, and so has its range.
MOVES = {
    "ActivityRegularization",
    "AlphaDropout",
    "ChannelShuffle",
    "Cropping2D",
    "DropPath",
    "Dropout",
    "ExpandDims",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GetItem",
    "GlobalMaxPooling2D",
    "Identity",
    "Max",
    "MaxPooling2D",
    "PadToMultiple",
    "Permute",
    "Reshape",
    "RowsToMap",
    "SpatialDropout2D",
    "Split",
    "Squeeze",
    "Swapaxes",
    "Take",
    "Transpose",
    "WindowMerge",
    "WindowPartition",
    "ZeroPadding2D",
    "linear",
}
# LiteRT demands the range of the input for the output, which is rounded.
AVERAGES = {"AveragePooling2D", "Resize", "Resizing", "UpSampling2D"}
# LiteRT demands this range of the output in 8 bits; in 16 it is from -1 to 1 for all.
FIXED = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
FIXED_IN_16_BITS = (-32767 / 32768, 32767 / 32768)
# LiteRT adds the activation to these before it rounds.
FUSES = {"Add", "Multiply", "Subtract"}
FUSED = {"relu", "relu6"}
# All others have ranges of their own.
OWN = {
    *FUSES,
    *FUSED,
    "Concatenate",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "Matmul",
    "Mean",
    "ReciprocalRoot",
    "elu",
    "gelu",
    "hard_silu",
    "leaky_relu",
}
# LiteRT has these in 8 bits only. It has RSQRT, but interpolates it between 512 points, which is
# off by several percent where most variances are.
NOT_IN_16_BITS = {"ReciprocalRoot", "elu", "gelu", "hard_silu"}
_OPERATIONS = {
    "Elu": "elu",
    "Gelu": "gelu",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "LeakyRelu": "leaky_relu",
    "LeakyReLU": "leaky_relu",
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "Softmax": "softmax",
    "Tanh": "tanh",
}


def kind_of(operation: keras.Operation) -> str:
    """The name of an operation's type, or of the activation that it computes."""
    name = type(operation).__name__
    if type(operation) in ACTIVATION:
        return getattr(operation.activation, "__name__", type(operation.activation).__name__)
    if type(operation) is layers.ReLU:
        bounds = operation.max_value, operation.negative_slope, operation.threshold
        return {(None, 0, 0): "relu", (6, 0, 0): "relu6"}.get(bounds, name)
    return _OPERATIONS.get(name, name)


def has_integers(operation: keras.Operation, bits: int = 8) -> bool:
    """Whether LiteRT has an operation of `integer_operators` in integers of 8 or 16 bits."""
    if type(operation) in (*CONV2D, *DENSE, DepthwiseConv2D, FoldedNorm):
        return True
    kind = kind_of(operation)
    if bits == 16 and kind in NOT_IN_16_BITS:
        return False
    return kind in MOVES | AVERAGES | OWN | FIXED.keys()


def fixed_range(kind: str, bits: int) -> tuple[float, float] | None:
    """The range that LiteRT demands of an operator's output."""
    if kind not in FIXED:
        return None
    return FIXED_IN_16_BITS if bits == 16 else FIXED[kind]


def ranges_of(nodes: list) -> dict[int, FakeQuant]:
    """By the ids of tensors, what they are rounded by, also after operators that only move."""
    ranges = {}
    for node in nodes:
        if isinstance(node.operation, FakeQuant):
            ranges[id(node.outputs[0])] = node.operation
        elif kind_of(node.operation) in MOVES and id(node.input_tensors[0]) in ranges:
            rounding = ranges[id(node.input_tensors[0])]
            ranges.update((id(y), rounding) for y in node.outputs)
    return ranges


def integer_operators(
    model: keras.Model,
    keep: Callable[[keras.Operation], bool] = lambda operation: False,
    bits: int = 8,
) -> keras.Model:
    """A flat copy of a model in operators that LiteRT has in integers, as far as there are any.

    Parallel branches are merged. A BatchNormalization right after a convolution or dense layer is a
    `FoldedNorm`, all others are folded with their present statistics. Activations stand by
    themselves; SiLU, hard-sigmoid, and normalisations over channels are sums and products.

    Args:
        model: as in `graph.lower`; it stays as it is.
        keep: of an operation, named by its path, whether it is to stay one.
        bits: 8, or 16, in which LiteRT has fewer operators.
    """
    forms = _FORMS | _FORMS_IN_16_BITS if bits == 16 else _FORMS

    def opened(opener):
        def replace(operation, node):
            if type(operation) not in PRODUCTS and keep(operation):
                return None
            return opener(operation, node)

        return lambda model: rewrite(model, once(replace))

    return in_turn(
        model,
        reparameterize,
        _keep_norms,
        opened(
            lambda operation, node: (
                _open_scale(operation, node) or _open_call(operation, node, forms)
            )
        ),
        fold_batchnorm,
        lower_products,
        opened(lambda operation, node: _open(operation, node, forms)),
    )


def _keep_norms(model):
    with leaf_graph(model) as graph:
        nodes = graph_nodes(graph)
        calls = Counter(node.operation for node in nodes)
        uses = Counter(id(x) for node in nodes for x in node.input_tensors)
        uses.update(map(id, graph.outputs))
        private = {
            id(node.outputs[0])
            for node in nodes
            if calls[node.operation] == 1
            and uses[id(node.outputs[0])] == 1
            and _keeps_norm(node.operation)
        }

        def keep(operation, node):
            (x, *_) = node.input_tensors
            if (
                type(operation) not in BATCH_NORM
                or calls[operation] > 1
                or id(x) not in private
                or operation.axis not in (-1, len(x.shape) - 1)
            ):
                return None
            norm = FoldedNorm.from_config(operation.get_config())
            norm.build(x.shape)
            norm.set_weights(operation.get_weights())
            return norm

        return rebuild(graph, keep)


def _keeps_norm(layer):
    """Whether a layer is one product in LiteRT too: groups and large kernels are cut in pieces."""
    if type(layer) not in PRODUCTS or getattr(layer, "groups", 1) > 1:
        return False
    if getattr(layer, "activation", None) not in (None, keras.activations.linear):
        return False
    return type(layer) not in DEPTHWISE or math.prod(layer.kernel_size) <= MOST_TAPS


def _open_scale(operation, node):
    if type(operation) is GlobalResponseNorm:
        return _response_norm(operation, node)
    if normalized_axes(operation, node) == (-1,):
        return _layer_norm(operation, node)
    if type(operation) is SkipInit:
        channels = node.outputs[0].shape[-1]
        return affine(operation.name, node, np.full(channels, ops.convert_to_numpy(operation.gain)))
    return (
        open_layer_scale(operation, node)
        or open_star_relu(operation, node)
        or open_padding(operation, node)
    )


def _layer_norm(norm, node):
    """A LayerNormalization. Its epsilon is less than the variance's step."""
    scaled = affine(norm.name, node, norm.gamma, norm.beta)
    root = ReciprocalRoot(norm.epsilon, name=f"{norm.name}_root")

    def normalise(x):
        x = ops.subtract(x, ops.mean(x, axis=-1, keepdims=True))
        variance = ops.mean(ops.multiply(x, x), axis=-1, keepdims=True)
        return scaled(ops.multiply(x, root(variance)))

    return normalise


def _response_norm(norm, node):
    """A GlobalResponseNorm by the mean of squares for their sum, which changes no ratio."""
    scaled = affine(norm.name, node, norm.gamma, norm.beta)
    roots = [ReciprocalRoot(norm.epsilon, name=f"{norm.name}_root{i}") for i in range(2)]

    def normalise(x):
        squares = ops.mean(ops.multiply(x, x), axis=(1, 2), keepdims=True)
        sizes = ops.multiply(squares, roots[0](squares))
        root = roots[1](ops.mean(sizes, axis=-1, keepdims=True))
        ratio = ops.multiply(sizes, ops.multiply(root, root))
        return ops.add(x, scaled(ops.multiply(x, ratio)))

    return normalise


def _open_call(operation, node, forms):
    """A layer without weights by the operations of its call, if all have an integer form."""
    if (
        not isinstance(operation, keras.Layer)
        or type(operation).__module__.startswith("keras.")
        or operation.variables
        or has_integers(operation)
    ):
        return None
    inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in node.input_tensors]
    args, kwargs = node.arguments.fill_in({id(x): y for x, y in zip(node.input_tensors, inputs)})
    try:
        outputs = operation.call(*args, **kwargs)
    except Exception:  # of a call that wants numbers, behind a compute_output_shape
        return None
    inside = graph_nodes(keras.Model(inputs, outputs))
    known = all(has_integers(n.operation) or kind_of(n.operation) in forms for n in inside)
    return operation.call if known else None


def _open(operation, node, forms):
    kind, (x, *_) = kind_of(operation), node.input_tensors
    if _is_idle(kind, node):
        return _same
    if kind in forms:
        return forms[kind]
    if type(operation) in BATCH_NORM and operation.axis in (-1, len(x.shape) - 1):
        return _affine(operation, x.shape)
    if type(operation) is layers.Average:
        return lambda xs: ops.multiply(sum(xs[1:], start=xs[0]), 1 / len(xs))
    if type(operation) is BlurPool2D:
        return _blur(operation, x.shape)
    if kind == "GlobalAveragePooling2D" and x.shape[1:3] == (1, 1):
        return lambda x: ops.reshape(x, (-1, *node.outputs[0].shape[1:]))  # a mean of one value
    product, activation = _product(operation, node), getattr(operation, "activation", None)
    if product is None or activation in (None, keras.activations.linear):
        return product
    after = layers.Activation(activation, name=f"{operation.name}_activation")
    form = forms.get(kind_of(after), after)
    return lambda x: form(product(x))


def _is_idle(kind, node):
    """Whether an operation is `x + 0`, `x - 0` or `1 * x`. The converter leaves those out, so that
    they have no range of their own."""
    tensors, arguments = node.input_tensors, node.arguments.args
    if kind not in ("Add", "Multiply", "Subtract") or len(tensors) != 1 or len(arguments) != 2:
        return False
    first, second = arguments
    if kind == "Subtract" and first is not tensors[0]:
        return False
    number = second if first is tensors[0] else first
    is_idle = np.all(ops.convert_to_numpy(number) == (kind == "Multiply"))
    return bool(is_idle) and node.outputs[0].shape == tensors[0].shape


def _same(x, y):
    return x if keras.backend.is_keras_tensor(x) else y


def _product(operation, node):
    """What stands for a product without its activation, `None` for what can stay."""
    (x, *_), activation = node.input_tensors, getattr(operation, "activation", None)
    if type(operation) is layers.DepthwiseConv2D and operation.depth_multiplier == 1:
        return _depthwise(operation, x.shape)
    if type(operation) is layers.Conv1D and operation.groups == 1 and operation.padding != "causal":
        return _in_two_dimensions(operation, node)
    if type(operation) not in PRODUCTS or activation in (None, keras.activations.linear):
        return None
    product = type(operation).from_config(operation.get_config() | {"activation": None})
    product.build(x.shape)
    product.set_weights(operation.get_weights())
    return product


def _hard_sigmoid(x):
    return ops.multiply(ops.relu6(ops.add(x, 3.0)), 1 / 6)


# The float tensorflow backend has an operator for these, LiteRT has not.
_FORMS = {
    "silu": lambda x: ops.multiply(x, ops.sigmoid(x)),
    "swish": lambda x: ops.multiply(x, ops.sigmoid(x)),
    "hard_sigmoid": _hard_sigmoid,
}
_FORMS_IN_16_BITS = {"hard_silu": lambda x: ops.multiply(x, _hard_sigmoid(x))}


def _affine(norm, shape):
    """A BatchNormalization as a depthwise convolution, which LiteRT fuses an activation with."""
    scale, shift = norm_affine(norm)
    positions = shape[1:3] if len(shape) == 4 else (math.prod(shape[1:-1]), 1)
    product = DepthwiseConv2D(1, name=norm.name)
    product.build((None, *positions, shape[-1]))
    product.set_weights([scale[None, None, :, None], shift])
    if len(shape) == 4:
        return lambda x, mask=None: product(x)

    def multiply(x, mask=None):
        y = product(ops.reshape(x, (-1, *positions, shape[-1])))
        return ops.reshape(y, (-1, *shape[1:]))

    return multiply


def _in_two_dimensions(layer, node):
    """A one-dimensional convolution as one over a map of one row."""
    product = Conv2D(
        layer.filters,
        (1, *layer.kernel_size),
        (1, *layer.strides),
        layer.padding,
        dilation_rate=(1, *layer.dilation_rate),
        use_bias=layer.use_bias,
        name=layer.name,
    )
    _, length, channels = node.input_tensors[0].shape
    product.build((None, 1, length, channels))
    kernel, *bias = layer.get_weights()
    product.set_weights([kernel[None], *bias])

    def convolve(x):
        y = product(ops.reshape(x, (-1, 1, length, channels)))
        return ops.reshape(y, (-1, *node.outputs[0].shape[1:]))

    return convolve


def _blur(blur, shape):
    product = DepthwiseConv2D(3, 2, blur.padding, use_bias=False, trainable=False, name=blur.name)
    product.build(shape)
    binomial = np.outer((1, 2, 1), (1, 2, 1)) / 16
    # Half of the largest lies between two steps, on which of them backends and the converter do not
    # agree: it is to be a little less than half.
    binomial[1, 1] *= 1 + 4e-6
    product.set_weights([np.tile(binomial[:, :, None, None], (1, 1, shape[-1], 1))])
    return product


def _depthwise(layer, shape):
    product = DepthwiseConv2D(
        layer.kernel_size,
        layer.strides,
        layer.padding,
        layer.dilation_rate,
        use_bias=layer.use_bias,
        name=layer.name,
    )
    product.build(shape)
    product.set_weights(layer.get_weights())
    return product
