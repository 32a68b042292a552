"""A quantized model and the float model that it was made from, run side by side, layer by layer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator

import keras
import numpy as np

from keras_convnets.deploy.litert import check_calibration
from keras_convnets.graph.rewrite import consumers_of, graph_nodes, leaf_graph
from keras_convnets.layers.fake_quant import FoldedNorm
from keras_convnets.quantization.aware import QUANTIZED, is_quantized
from keras_convnets.quantization.inference import PRODUCTS
from keras_convnets.quantization.operators import integer_operators, kind_of

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Step:
    """A layer with a rounded kernel, when its turn has come.

    `norm`: the `FoldedNorm` after it, or `None`. `activation`: `"relu"`, `"relu6"` or `None`, what
    comes right after both. `inputs`: batches of what the layers before it give, rounded.
    `targets`: batches of what it gives in the float model, `norm` included.
    """

    layer: keras.Layer
    norm: FoldedNorm | None
    activation: str | None
    inputs: list[np.ndarray]
    targets: list[np.ndarray]


@contextlib.contextmanager
def layer_by_layer(
    quantized: keras.Model, model: keras.Model, images: np.ndarray
) -> Iterator[Iterator[Step]]:
    """The layers of a quantized model in the order of execution. What is done to the weights of one
    shows in the inputs of those after it. One that is called several times has its turn once, at
    the first call. Memory holds what later layers still read.

    Raises:
        ValueError: for a model that is not quantized, a float model that it was not made from, and
            images that do not fit.
    """
    check_pair(quantized, model)
    images = check_calibration(images, model)
    with leaf_graph(quantized) as ours, leaf_graph(integer_operators(model)) as theirs:
        _check_kernels(ours, theirs)
        yield _steps(_Walk(ours, images), _Walk(theirs, images))


def check_pair(quantized: keras.Model, model: keras.Model) -> None:
    """Raises `ValueError` unless the first is quantized and the second is not."""
    if not isinstance(quantized, keras.Model) or not is_quantized(quantized):
        raise ValueError(f"quantized={quantized!r} must be what quantize_aware has given.")
    if not isinstance(model, keras.Model) or is_quantized(model):
        raise ValueError(
            f"model={model!r} must be the float model that was given to quantize_aware."
        )


def _check_kernels(ours, theirs):
    known = {layer.name: layer.kernel.shape for layer in theirs.layers if type(layer) in QUANTIZED}
    for layer in ours.layers:
        if isinstance(layer, PRODUCTS) and known.get(layer.name) != layer.kernel.shape:
            raise ValueError(
                f"quantized has a layer {layer.name!r} with a kernel of shape "
                f"{layer.kernel.shape}, model={theirs.name!r} has none: give the float model that "
                "was given to quantize_aware."
            )


class _Walk:
    """A graph computed operation by operation for all images, the results in the host's memory."""

    def __init__(self, graph, images):
        self.nodes = graph_nodes(graph)
        self.consumers = consumers_of(self.nodes)
        self.left = Counter(id(x) for node in self.nodes for x in set(node.input_tensors))
        self.values = {
            id(graph.inputs[0]): [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        }

    def run(self, node) -> None:
        """Computes a node, and forgets what none after it reads."""
        results = [[] for _ in node.outputs]
        read = {id(x): self.values[id(x)] for x in node.input_tensors}
        for batch in zip(*read.values()):
            tensors = dict(zip(read, map(keras.ops.convert_to_tensor, batch)))
            args, kwargs = node.arguments.fill_in(tensors)
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            for result, y in zip(results, outputs, strict=True):
                result.append(keras.ops.convert_to_numpy(y))
        self.values.update((id(y), result) for y, result in zip(node.outputs, results))
        for key in read:
            self.left[key] -= 1
            if not self.left[key]:
                del self.values[key]

    def only_consumer(self, node):
        """The one node that reads the output of a node, if it is one."""
        consumers = self.consumers.get(id(node.outputs[0]), ())
        return consumers[0] if len(consumers) == 1 else None

    def end(self, node) -> tuple:
        """The last node of a product and its `FoldedNorm`, and that norm."""
        after = self.only_consumer(node)
        if after is not None and isinstance(after.operation, FoldedNorm):
            return after, after.operation
        return node, None


def _steps(ours, theirs):
    targets, known = _targets(theirs), {}
    done = set()
    for node in ours.nodes:
        layer = node.operation
        if isinstance(layer, PRODUCTS) and layer not in done:
            done.add(layer)
            while layer.name not in known:  # branches may come in another order
                known.update([next(targets)])
            end, norm = ours.end(node)
            after = ours.only_consumer(end)
            kind = kind_of(after.operation) if after is not None else None
            activation = kind if kind in ("relu", "relu6") else None
            inputs = ours.values[id(node.input_tensors[0])]
            yield Step(layer, norm, activation, inputs, known.pop(layer.name))
        ours.run(node)


def _targets(walk):
    """Name and output of each product."""
    names = {}
    for node in walk.nodes:
        if type(node.operation) in QUANTIZED and node.operation.name not in names.values():
            end, _ = walk.end(node)
            names[id(end.outputs[0])] = node.operation.name
        walk.run(node)
        key = id(node.outputs[0])
        if key in names:
            yield names[key], walk.values[key]
