"""Channels of one tensor brought to like sizes, by factors that two layers share."""

from __future__ import annotations

from collections import Counter

import keras
import numpy as np

from keras_convnets.deploy.export import check_model
from keras_convnets.graph.fold import fold_batchnorm
from keras_convnets.graph.reparameterize import reparameterize
from keras_convnets.graph.rewrite import consumers_of, graph_nodes, leaf_graph, rebuild
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.rep import per_output, values
from keras_convnets.quantization.aware import QUANTIZED, is_quantized
from keras_convnets.quantization.operators import integer_operators, kind_of

# f(s * x) = s * f(x) for each channel by itself and s > 0.
HOMOGENEOUS = {
    "ActivityRegularization",
    "AveragePooling2D",
    "Cropping2D",
    "Dropout",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "Identity",
    "MaxPooling2D",
    "Resizing",
    "SpatialDropout2D",
    "UpSampling2D",
    "ZeroPadding2D",
    "leaky_relu",
    "linear",
    "relu",
}
SWEEPS = 100
SETTLED = 1e-3


def equalize(model: keras.Model, *, replace_relu6: bool = False) -> keras.Model:
    """A flat copy of a float model that computes the same with channels of like sizes: to be given
    to `quantize_aware`.

    Where one layer's output goes to one other layer only, through ReLU, pooling and such, each
    channel is divided by a factor in the first and multiplied by it in the second, so that both
    have the same largest weight there (Nagel et al. 2019, arXiv:1906.04721, section 4.1).
    That is repeated over all pairs until nothing moves. BatchNorm is folded first.

    Kernels are rounded per output channel here, which makes uneven channels of a kernel harmless;
    what is gained is in activations, rounded to one range, and along a kernel's input channels. So
    networks with even channels gain nothing; a trial on a few images tells.

    Args:
        model: a float model as in `quantize_aware`, trained, as its BatchNorm stays folded; it
            stays as it is.
        replace_relu6: whether ReLU6 between two layers becomes ReLU, as in the paper. That changes
            what the model computes; see that its accuracy is still there. Without it, such pairs
            are left alone, as a factor would move the limit of 6.

    Raises:
        ValueError: for a quantized model, one that cannot be exported, and one without such pairs.
    """
    check_model(model, "a .tflite")
    if is_quantized(model):
        raise ValueError(
            f"model={model.name!r} is quantized already: equalize the float model, and quantize "
            "what that gives."
        )
    with leaf_graph(integer_operators(fold_batchnorm(reparameterize(model)))) as graph:
        plan = _Plan(graph, replace_relu6)
        if not plan.pairs:
            raise ValueError(
                f"model={model.name!r} has no two layers with nothing but ReLU, pooling and such "
                "in between, so there is nothing to equalize"
                + (
                    ": ReLU6 is in the way, replace_relu6=True makes it ReLU."
                    if plan.has_relu6 and not replace_relu6
                    else ": quantize it as it is."
                )
            )
        plan.equalize()
        return rebuild(graph, plan.replace)


class _Plan:
    """Which layers share factors, and their weights."""

    def __init__(self, graph, replace_relu6):
        self.nodes = graph_nodes(graph)
        self.consumers = consumers_of(self.nodes)
        self.calls = Counter(node.operation for node in self.nodes)
        self.outputs = set(map(id, graph.outputs))
        self.has_relu6 = any(kind_of(operation) == "relu6" for operation in self.calls)
        self.replaces = replace_relu6
        self.replaced = set()
        self.pairs = []
        for node in self.nodes:
            self._follow(node)
        self.weights = {
            layer: [values(w) for w in layer.weights] for pair in self.pairs for layer in pair
        }
        self.built = {}

    def _follow(self, first):
        """Adds the pair that a node begins, if it does."""
        between, node = [], first
        while self._is_private(y := node.outputs[0]):
            (node,) = self.consumers[id(y)]
            if self._is_product(first) and self._is_product(node):
                self.pairs.append((first.operation, node.operation))
                self.replaced.update(op for op in between if kind_of(op) == "relu6")
                return
            if not self._crosses(node):
                return
            between.append(node.operation)

    def _is_private(self, tensor):
        return id(tensor) not in self.outputs and len(self.consumers[id(tensor)]) == 1

    def _is_product(self, node):
        return type(node.operation) in QUANTIZED and self.calls[node.operation] == 1

    def _crosses(self, node):
        kind = kind_of(node.operation)
        if kind in ("Flatten", "Reshape"):  # of a mean, say
            return node.input_tensors[0].shape[-1] == node.outputs[0].shape[-1]
        if kind == "relu6":
            return self.replaces and self.calls[node.operation] == 1
        return kind in HOMOGENEOUS

    def equalize(self) -> None:
        """Until the factors are one."""
        for _ in range(SWEEPS):
            factors = [self._share(*pair) for pair in self.pairs]
            if max(np.abs(np.log(f)).max() for f in factors) < SETTLED:
                return

    def _share(self, first, second):
        """Divides by factors in one layer and multiplies by them in the next; returns them."""
        sizes = _sizes(self.weights[first][0], first, axis=-1)
        wanted = _sizes(self.weights[second][0], second, axis=-2)
        dead = (sizes == 0) | (wanted == 0)
        factors = np.sqrt(np.where(dead, 1, sizes) / np.where(dead, 1, wanted))
        kernel, *bias = self.weights[first]
        self.weights[first] = [kernel / per_output(first, factors), *(b / factors for b in bias)]
        kernel, *bias = self.weights[second]
        if isinstance(second, DepthwiseConv2D):
            kernel = kernel * per_output(second, factors)
        else:
            kernel = kernel * factors[:, None]
        self.weights[second] = [kernel, *bias]
        return factors

    def replace(self, operation, node):
        """What `rebuild` asks."""
        if operation in self.replaced:
            return keras.layers.ReLU(name=operation.name)
        if operation not in self.weights:
            return None
        if operation not in self.built:
            layer = type(operation).from_config(operation.get_config())
            layer.build(node.input_tensors[0].shape)
            layer.set_weights(self.weights[operation])
            self.built[operation] = layer
        return self.built[operation]


def _sizes(kernel, layer, axis):
    """The largest weight of each output channel (axis -1) or input channel (-2)."""
    if isinstance(layer, DepthwiseConv2D):
        axis = -2
    return np.abs(np.moveaxis(kernel, axis, 0)).reshape(kernel.shape[axis], -1).max(axis=1)
