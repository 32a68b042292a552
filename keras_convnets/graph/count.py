"""Parameters, multiply-accumulates and activation memory, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import keras
import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by it)
import numpy as np

from keras_convnets.graph.rewrite import graph_nodes, leaf_graph
from keras_convnets.layers.computed import ComputedConv2D
from keras_convnets.layers.condconv import CondConv2D
from keras_convnets.layers.depthwise import BlurPool2D, DepthwiseConv2D
from keras_convnets.ops.neighborhood import AggregateNeighborhood, ScoreNeighborhood


@dataclass(frozen=True)
class Row:
    """One operation of the flat graph.

    `parameters` leaves out BatchNorm's moving statistics, which no optimiser trains; a layer used
    twice has its parameters in the first row only. `macs` are those of one image.
    `activation_bytes` are what one image takes in memory while the operation runs: what it reads
    and writes, and what later operations still read; no operation writes over its input.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Counts:
    """`count`'s result: a row per operation, in the order of execution."""

    rows: list[Row]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """The most that is in memory at once."""
        return max((row.activation_bytes for row in self.rows), default=0)


def count(model: keras.Model) -> Counts:
    """Counts parameters, the multiply-accumulates of convolutions and matrix products, and memory.

    Additions, normalisations and activations have no multiply-accumulates, as in
    `torch.utils.flop_counter` (whose figure is twice the MACs).

    Args:
        model: a Functional model with a static input size; the batch may be open.

    Raises:
        ValueError: if a size of the input is open.
    """
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"input {tensor.name!r} has shape {tensor.shape}: MACs depend on the size, build "
                "the model with input_shape=(height, width, channels)."
            )
    seen = set()
    with leaf_graph(model) as graph:
        nodes = graph_nodes(graph)
        memory = _activation_bytes(graph, nodes)
        return Counts([_row(node, seen, size) for node, size in zip(nodes, memory)])


def _activation_bytes(graph, nodes):
    """Bytes in memory during each node."""
    last = {id(x): i for i, node in enumerate(nodes) for x in node.input_tensors}
    last.update((id(x), len(nodes)) for x in graph.outputs)
    present, rows = {id(x): _bytes(x) for x in graph.inputs}, []
    for i, node in enumerate(nodes):
        present.update((id(x), _bytes(x)) for x in node.outputs)
        rows.append(sum(present.values()))
        present = {key: size for key, size in present.items() if last.get(key, i) > i}
    return rows


def _bytes(tensor):
    return math.prod(tensor.shape[1:]) * np.dtype(tensor.dtype).itemsize


def _row(node, seen, activation_bytes):
    operation, output = node.operation, node.outputs[0]
    variables = getattr(operation, "trainable_weights", [])
    fresh = [v for v in variables if id(v) not in seen]
    seen.update(map(id, fresh))
    return Row(
        operation.name,
        type(operation).__name__,
        tuple(output.shape[1:]),
        sum(math.prod(v.shape) for v in fresh),
        _macs(operation, [x.shape for x in node.input_tensors], math.prod(output.shape[1:])),
        activation_bytes,
    )


def _macs(operation, input_shapes, outputs):
    """`outputs`: number of output values of one image."""
    if isinstance(operation, keras.layers.DepthwiseConv2D | DepthwiseConv2D | BlurPool2D):
        return outputs * math.prod(operation.kernel_size)
    if isinstance(operation, keras.layers.Conv1D | keras.layers.Conv2D):
        return outputs * math.prod(operation.kernel.shape[:-1])
    if isinstance(operation, keras.layers.Dense):
        return outputs * operation.kernel.shape[0]
    if isinstance(operation, ComputedConv2D):
        taps = math.prod(operation.kernel_size)
        return outputs * taps * operation.channels // operation.groups
    if isinstance(operation, CondConv2D):
        kernel = operation.kernel.shape
        return outputs * math.prod(kernel[1:-1]) + math.prod(kernel)  # and the mixture of experts
    if isinstance(operation, AggregateNeighborhood):
        return outputs * operation.neighborhood.taps
    if isinstance(operation, ScoreNeighborhood):
        return outputs * input_shapes[0][-1] // operation.groups
    if type(operation).__name__ == "Matmul":
        return outputs * input_shapes[0][-1]
    return 0
