"""What rounding each layer by itself costs, and which layers to spend more bits on."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
from collections.abc import Callable, Collection
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_convnets.deploy.export import write_checked
from keras_convnets.graph.rewrite import graph_nodes, leaf_graph, rebuild
from keras_convnets.layers.fake_quant import (
    FakeQuant,
    FoldedNorm,
    QuantDepthwiseConv2D,
    rounded_kernel,
)
from keras_convnets.quantization.aware import QUANTIZED, quantize_aware
from keras_convnets.quantization.inference import PRODUCTS
from keras_convnets.quantization.operators import FUSED, FUSES, kind_of

BITS = (8, 4)
FLOAT = 32
BATCH = 32
COLORS = {FLOAT: "#9a9a9a", 8: "#0b5cad", 4: "#c4220a", None: "#1a7f37"}
LABELS = {FLOAT: "weights in float", 8: "in 8 bits", 4: "in 4 bits", None: "no weights"}
INSTALL = 'pip install "keras-convnets[quickstart]"'


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The error of a network's output when a single layer is rounded.

    Args:
        layer: its path in the flat graph; `"image"` for the input.
        bits: of its weights; 32 if they stay in float and only what it gives is rounded, to 8 bits
            as in all rows; `None` for a layer without weights.
        weights: how many of them there are.
        error: see `sensitivity`.
    """

    layer: str
    bits: int | None
    weights: int
    error: float

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return -(-self.weights * (self.bits or 0) // 8)


def relative_error(wanted, given) -> float:
    """The squared error as a share of the squared output, the largest of all outputs: one over the
    signal-to-noise ratio."""
    errors = [
        float(((y - x).astype("float64") ** 2).sum() / max((x.astype("float64") ** 2).sum(), 1e-30))
        for x, y in zip(keras.tree.flatten(wanted), keras.tree.flatten(given), strict=True)
    ]
    return max(errors)


def sensitivity(
    model: keras.Model,
    images: np.ndarray,
    *,
    bits: Collection[int] = BITS,
    calibration_method: str = "min_max",
    keep_float: Collection[str] = (),
    error: Callable[[np.ndarray, np.ndarray], float] = relative_error,
) -> list[Sensitivity]:
    """How much the output suffers from each layer by itself: all others compute in float (Wu et al.
    2020, arXiv:2004.09602, "partial quantization").

    A layer is rounded as `quantize_aware` would: what it gives in 8 bits, and its weights. One
    prediction on all images for each row.

    Args:
        model: as in `quantize_aware`; it stays as it is.
        images: for the ranges and the errors; 100 or so.
        bits: of the weights: 8, 4 or both.
        calibration_method, keep_float: as in `quantize_aware`; layers kept in float have no row.
        error: function of the float model's outputs and those with the layer rounded, as `predict`
            gives them; larger is worse. Default: squared error as a share of the squared output.

    Returns:
        In the order of execution: for each layer with weights a row with these in float and one for
        each of `bits`; for others that round, a row with `bits=None`.

    Raises:
        ValueError: as `quantize_aware`, and for bits other than 8 and 4.
    """
    if not bits or not set(bits) <= set(BITS):
        raise ValueError(f"bits={bits!r} must be of {', '.join(map(str, BITS))}, at least one.")
    quantized = quantize_aware(
        model, calibration=images, calibration_method=calibration_method, keep_float=keep_float
    )
    with leaf_graph(quantized) as graph:
        parts = _Parts(graph)
        network = rebuild(graph, parts.replace)
    images = np.asarray(images, "float32")
    wanted = network.predict(images, BATCH, verbose=0)

    def measured():
        return float(error(wanted, network.predict(images, BATCH, verbose=0)))

    rows = []
    for name, switches in parts.switches.items():
        product, depthwise = parts.products.get(name, (None, False))
        for switch in switches:
            switch.on.assign(1.0)
        if product is None:
            rows.append(Sensitivity(name, None, 0, measured()))
        else:
            kernel = ops.convert_to_numpy(product.kernel).copy()
            rows.append(Sensitivity(name, FLOAT, kernel.size, measured()))
            for count in sorted(set(bits), reverse=True):
                product.kernel.assign(rounded_kernel(kernel, count, depthwise))
                rows.append(Sensitivity(name, count, kernel.size, measured()))
            product.kernel.assign(kernel)
        for switch in switches:
            switch.on.assign(0.0)
    return rows


class _Parts:
    """The layers of a quantized graph in float, and switches to round what they give."""

    def __init__(self, graph):
        self.producers = {id(y): node for node in graph_nodes(graph) for y in node.outputs}
        self.switches = {}  # by the name of a layer, those for what it gives
        self.products = {}  # by name, a layer with weights, and whether it is depthwise

    def replace(self, operation, node):
        """What `rebuild` asks."""
        if isinstance(operation, FakeQuant):
            switch = _Switch(operation)
            self.switches.setdefault(self._source(node), []).append(switch)
            return lambda x, training=False, observe=True: switch(x)
        if not isinstance(operation, PRODUCTS):
            return None
        if operation.name not in self.products:
            kind = {quant: float_ for float_, quant in QUANTIZED.items()}[type(operation)]
            config = operation.get_config()
            config.pop("bits")
            layer = kind.from_config(config)
            layer.build(node.input_tensors[0].shape)
            layer.set_weights(operation.get_weights())
            depthwise = isinstance(operation, QuantDepthwiseConv2D)
            self.products[operation.name] = layer, depthwise
        return self.products[operation.name][0]

    def _source(self, node):
        """The layer that gives what is rounded, before the norm and activation fused with it."""
        before = self.producers.get(id(node.input_tensors[0]))
        if before is None:
            return "image"
        return self._source(before) if self._is_fused(before) else before.operation.name

    def _is_fused(self, node):
        before = self.producers.get(id(node.input_tensors[0]))
        if before is None or kind_of(node.operation) not in {*FUSED, "FoldedNorm"}:
            return False
        return (
            isinstance(before.operation, (*PRODUCTS, FoldedNorm))
            or kind_of(before.operation) in FUSES
        )


class _Switch(keras.layers.Layer):
    """Rounds while it is on."""

    def __init__(self, rounding):
        super().__init__(name=f"{rounding.name}_switch", trainable=False)
        self.rounding = type(rounding).from_config(rounding.get_config())
        self.rounding.build(())
        self.rounding.set_weights(rounding.get_weights())

    def build(self, input_shape):
        self.on = self.add_weight(shape=(), initializer="zeros", name="on", dtype="float32")

    def call(self, x):
        return ops.where(self.on > 0.5, self.rounding(x), x)

    def compute_output_shape(self, input_shape):
        return input_shape


def propose(
    rows: Collection[Sensitivity], *, size: int | None = None, error: float | None = None
) -> dict[str, int]:
    """The bits of each layer's weights that keep to a budget: 32 (float) where it pays most.

    All layers begin with the least bits that they have a row for. Then, again and again, the change
    that lowers the error most for a byte is made, as long as the size allows it or until the error
    is reached. Errors of layers are taken to add up, as small ones about do.

    Args:
        rows: what `sensitivity` gave.
        size: the most bytes that all weights may take, or
        error: the most that all errors may add up to.

    Returns:
        The bits by the layer's path: the `weight_bits` of `quantize_aware`.

    Raises:
        ValueError: for both budgets or none, and one that no choice keeps to.
    """
    if (size is None) == (error is None):
        raise ValueError(f"size={size!r}, error={error!r}: give one of them.")
    options = {}
    for row in rows:
        if row.bits is not None:
            options.setdefault(row.layer, {})[row.bits] = row
    chosen = {layer: by_bits[min(by_bits)] for layer, by_bits in options.items()}
    fixed = sum(row.error for row in rows if row.bits is None)

    def total_error():
        return fixed + sum(row.error for row in chosen.values())

    def total_size():
        return sum(row.bytes for row in chosen.values())

    if size is not None and total_size() > size:
        raise ValueError(
            f"size={size} is less than the {total_size()} bytes of all weights in the least bits "
            "that rows have: allow more, or measure fewer bits."
        )
    while error is None or total_error() > error:
        room = np.inf if size is None else size - total_size()
        changes = [
            (_gain(chosen[layer], row), row)
            for layer, by_bits in options.items()
            for row in by_bits.values()
            if 0 < row.bytes - chosen[layer].bytes <= room and row.error < chosen[layer].error
        ]
        if not changes:
            break
        _, best = max(changes, key=lambda change: change[0])
        chosen[best.layer] = best
    if error is not None and total_error() > error:
        raise ValueError(
            f"error={error} is not reached with all weights in float, where the rounding of "
            f"activations costs {total_error():.2g}: allow more, or choose another "
            "calibration_method."
        )
    return {layer: row.bits for layer, row in chosen.items()}


def _gain(now, then):
    return (now.error - then.error) / (then.bytes - now.bytes)


def draw_sensitivity(rows: Collection[Sensitivity], path: str | os.PathLike) -> Path:
    """Draws what `sensitivity` gave as a PNG file: a bar for each row, layer by layer.

    Raises:
        ValueError: if there are no rows or the path cannot be written.
        ImportError: if matplotlib is not installed.
    """
    if not rows:
        raise ValueError("rows is empty: give what sensitivity returns.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"The picture needs matplotlib, which is not installed: {INSTALL}")
    return write_checked(path, lambda: _picture(rows), lambda part: None)


def _picture(rows):
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row.layer for row in rows))
    figure = Figure(figsize=(10, 1.5 + 0.3 * len(layers)), layout="constrained")
    axis = figure.subplots()
    for bits, color in COLORS.items():
        bars = {layers.index(row.layer): row.error for row in rows if row.bits == bits}
        if bars:
            at = [i + {FLOAT: -0.25, 8: 0.0, 4: 0.25, None: 0.0}[bits] for i in bars]
            axis.barh(at, list(bars.values()), 0.25, color=color, label=LABELS[bits])
    axis.set_yticks(range(len(layers)), layers, fontsize=8)
    axis.set(ylim=(len(layers) - 0.4, -0.6), xlabel="error of the output", xscale="log")
    axis.set_title("When only this layer is rounded")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    target = io.BytesIO()
    figure.savefig(target, dpi=100, format="png")
    return target.getvalue()
