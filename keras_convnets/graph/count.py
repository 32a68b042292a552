"""Parameters and multiply-accumulates, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import keras

from keras_convnets.graph.flatten import check_flattenable, inline, path_names
from keras_convnets.layers.depthwise import DepthwiseConv2D


@dataclass(frozen=True)
class Row:
    """One operation of the flat graph.

    `parameters` leaves out BatchNorm's moving statistics, which no optimiser trains; a layer used
    twice has its parameters in the first row only. `macs` are those of one image.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


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


def count(model: keras.Model) -> Counts:
    """Counts parameters and the multiply-accumulates of convolutions and matrix products.

    Additions, normalisations and activations count nothing, as in `torch.utils.flop_counter`
    (whose figure is twice the MACs).

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
    check_flattenable(model)
    rows, seen = [], set()
    with path_names(model):
        flat = inline(keras.Model(model.input, model.output, name=model.name))
        for _, nodes in sorted(flat._nodes_by_depth.items(), reverse=True):
            rows += [_row(node, seen) for node in nodes if not node.is_input]
    return Counts(rows)


def _row(node, seen):
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
    )


def _macs(operation, input_shapes, outputs):
    """`outputs`: number of output values of one image."""
    if isinstance(operation, keras.layers.DepthwiseConv2D | DepthwiseConv2D):
        return outputs * math.prod(operation.kernel_size)
    if isinstance(operation, keras.layers.Conv2D):
        return outputs * math.prod(operation.kernel.shape[:-1])
    if isinstance(operation, keras.layers.Dense):
        return outputs * operation.kernel.shape[0]
    if type(operation).__name__ == "Matmul":
        return outputs * input_shapes[0][-1]
    return 0
