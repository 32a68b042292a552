"""From a float model to one that trains as the integers of the device will compute."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping

import keras
import numpy as np

from keras_convnets.deploy.export import check_model
from keras_convnets.deploy.litert import check_calibration
from keras_convnets.graph.rewrite import consumers_of, graph_nodes, in_turn, leaf_graph, rebuild
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.fake_quant import (
    FakeQuant,
    FoldedNorm,
    LearnedFakeQuant,
    LeaveFloat,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    ReciprocalRoot,
)
from keras_convnets.layers.fast import CONV2D, DENSE
from keras_convnets.quantization.calibration import METHODS, OF_EIGHT_BITS, extremes, narrowed
from keras_convnets.quantization.operators import (
    AVERAGES,
    FIXED,
    FUSED,
    FUSES,
    MOVES,
    fixed_range,
    has_integers,
    integer_operators,
    kind_of,
)

# Bits of the weights and of the activations.
SCHEMES = {"int8": (8, 8), "int4": (4, 8), "int16x8": (8, 16)}
FLOAT = 32
KERNEL_BITS = (4, 8, FLOAT)
RANGES = {"moving": FakeQuant, "learned": LearnedFakeQuant}
QUANTIZED = {
    **dict.fromkeys(CONV2D, QuantConv2D),
    **dict.fromkeys(DENSE, QuantDense),
    DepthwiseConv2D: QuantDepthwiseConv2D,
}


def quantize_aware(
    model: keras.Model,
    scheme: str = "int8",
    *,
    calibration: np.ndarray,
    calibration_method: str = "min_max",
    keep_float: Collection[str] = (),
    weight_bits: Mapping[str, int] | None = None,
    ranges: str = "moving",
) -> keras.Model:
    """A flat copy of a model that rounds weights and activations as LiteRT will: to `compile`,
    `fit`, save and load as any model, and for `quantization.export_litert`.

    Kernels are rounded per output channel, symmetrically; activations per tensor, to ranges that
    begin as those of the calibration images. Parallel branches
    are merged first (`graph.reparameterize`). A BatchNormalization right after a convolution or
    dense layer goes on with the statistics of the batches until `freeze_batchnorm` or the callback
    `FreezeBatchNorm`; others are folded with the statistics they have.

    Args:
        model: a built model with one image input of known size, computing in float32; it stays as
            it is.
        scheme: bits of weights and activations.
            - `"int8"`: 8 and 8.
            - `"int4"`: 4 and 8.
            - `"int16x8"`: 8 and 16, symmetric; for what loses too much with 8. LiteRT has fewer
              operators for it, and on a CPU they are slow.
        calibration: float images `(count, height, width, channels)`, normalised as the model
            expects; 100 or so from the training data.
        calibration_method: how the range of an activation follows from its values on those images.
            - `"min_max"`: it has all of them (Krishnamoorthi 2018, arXiv:1806.08342).
            - `"percentile"`: but 0.01% at either end (Wu et al. 2020, arXiv:2004.09602).
            - `"mse"`: rounding has the least squared error (Nagel et al. 2021, arXiv:2106.08295,
              section 3.1).
            - `"kl"`: what is cut off and rounded diverges least from what is cut off only (Migacz
              2017, 8-bit inference with TensorRT).

            Outliers make the first wide and coarse; the others cut them off.
        keep_float: layers to leave in float, by their path in the flat graph (regular expressions,
            found anywhere in `stage0_block1_mlp_fc1`) or the name of their type (`"Softmax"`).
        weight_bits: for the kernels of some layers, whatever the scheme has: 4, 8, or 32 to leave
            the layer in float. By the layer's path, as `propose` gives them, or a pattern as in
            `keep_float`. Of several that match, the last counts.
        ranges: `"moving"`, averages of the batches' smallest and largest values in training; or
            `"learned"` by the loss, as in LSQ (see `layers.fake_quant.LearnedFakeQuant`).

    Raises:
        ValueError: for a model that is quantized already or cannot be exported, operators that
            have no integer form, an unknown scheme or kind of ranges, a pattern that no layer
            matches, bits that there are not, and calibration images that do not fit or leave a
            tensor at zero. The model is unchanged.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r} must be one of {', '.join(SCHEMES)}.")
    if calibration_method not in METHODS:
        raise ValueError(
            f"calibration_method={calibration_method!r} must be one of {', '.join(METHODS)}."
        )
    if ranges not in RANGES:
        raise ValueError(f"ranges={ranges!r} must be one of {', '.join(RANGES)}.")
    if scheme == "int16x8" and calibration_method in OF_EIGHT_BITS:
        raise ValueError(
            f"calibration_method={calibration_method!r} chooses ranges for 256 values; 16 bits "
            "have room for outliers: leave it out for scheme='int16x8'."
        )
    if isinstance(keep_float, str):
        raise ValueError(f"keep_float={keep_float!r} must be a list of patterns, not one string.")
    check_model(model, "a .tflite")
    if is_quantized(model):
        raise ValueError(
            f"model={model.name!r} is quantized already: train it on as it is, or start again from "
            "the float model."
        )
    images = check_calibration(calibration, model)
    kernel_bits, bits = SCHEMES[scheme]

    def in_integers(model):
        return integer_operators(model, lambda operation: _matches(operation, keep_float), bits)

    def rounded(model):
        with leaf_graph(model) as graph:
            rounding = functools.partial(RANGES[ranges], bits=bits)
            plan = _Plan(graph, kernel_bits, bits, rounding, keep_float, weight_bits or {})
            plan.measure(images, calibration_method)
            plan.bound_roots()
            return rebuild(graph, plan.replace, plan.follow)

    return in_turn(model, in_integers, rounded)


def is_quantized(model: keras.Model) -> bool:
    """Whether a model has layers that round."""
    return any(isinstance(layer, FakeQuant) for layer in model._flatten_layers())


def freeze_batchnorm(model: keras.Model) -> None:
    """From here on training uses the moving statistics of every BatchNormalization as inference
    does, so that it sees exactly the weights that are exported. Compile the model again, if it
    was trained before; within one `fit` the callback `FreezeBatchNorm` does that."""
    for layer in model._flatten_layers():
        if isinstance(layer, FoldedNorm):
            layer.frozen = True


class FreezeBatchNorm(keras.callbacks.Callback):
    """`freeze_batchnorm` when an epoch begins (Krishnamoorthi 2018, section 3.2.2).

    `epoch`: counted from 0; a third before the end serves well.
    """

    def __init__(self, epoch: int):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            freeze_batchnorm(self.model)
            self.model.make_train_function(force=True)


def _matches(operation, patterns):
    return any(
        re.search(pattern, operation.name)
        or pattern in (type(operation).__name__, kind_of(operation))
        for pattern in patterns
    )


class _Plan:
    """Which tensors are rounded to which range, and what the products become."""

    def __init__(self, graph, kernel_bits, bits, rounding, keep_float, weight_bits):
        self.graph = graph
        self.bits = bits
        self.rounding = rounding
        self.nodes = graph_nodes(graph)
        self.consumers = consumers_of(self.nodes)
        self.outputs = set(map(id, graph.outputs))
        self.float = {op for pattern in keep_float for op in self._found("keep_float", pattern)}
        self.kernel_bits = self._bits_of_kernels(kernel_bits, weight_bits)
        self.float |= {op for op, bits in self.kernel_bits.items() if bits == FLOAT}
        self._check_operators()
        self.products = {}
        self.quantizers = {}  # id of a tensor: the FakeQuant that it has the range of
        self.left = {}  # id of a tensor that stays in float: the name of its operation
        self.learns = {}  # id of a tensor that is rounded: whether its FakeQuant learns from it
        for x in graph.inputs:
            self._add(x, "image")
        for node in self.nodes:
            self._plan(node)
        self._share()

    def _found(self, argument, pattern):
        """The operations that a pattern matches."""
        found = {n.operation for n in self.nodes if _matches(n.operation, [pattern])}
        if not found:
            names = sorted({node.operation.name for node in self.nodes})
            raise ValueError(
                f"{argument} has {pattern!r}, which no layer matches; there are {', '.join(names)}."
            )
        return found

    def _bits_of_kernels(self, usual, weight_bits):
        """{operation with a kernel that is rounded: its bits}."""
        operations = [node.operation for node in self.nodes if node.operation not in self.float]
        kernels = {op: usual for op in operations if type(op) in QUANTIZED}
        for pattern, bits in weight_bits.items():
            if bits not in KERNEL_BITS:
                raise ValueError(
                    f"weight_bits has {bits!r} for {pattern!r}; it must be 4, 8 or 32."
                )
            found = {op for op in kernels if op.name == pattern}
            found = found or self._found("weight_bits", pattern) & kernels.keys()
            if not found:
                raise ValueError(
                    f"weight_bits has {pattern!r}, which matches no layer with a kernel; those are "
                    f"{', '.join(sorted(layer.name for layer in kernels))}."
                )
            kernels.update(dict.fromkeys(found, bits))
        return kernels

    def _check_operators(self):
        unknown = {
            node.operation.name: kind_of(node.operation)
            for node in self.nodes
            if node.operation not in self.float and not has_integers(node.operation, self.bits)
        }
        if unknown:
            listed = ", ".join(f"{name} ({kind})" for name, kind in unknown.items())
            raise ValueError(
                f"model={self.graph.name!r} has operators without a form in integers of "
                f"{self.bits} bits: {listed}. Keep them in float, "
                f"keep_float={sorted(set(unknown.values()))}, or replace them."
            )

    def _plan(self, node):
        (y, *_), kind = node.outputs, kind_of(node.operation)
        if node.operation in self.float:
            self.left[id(y)] = node.operation.name
            if any(c.operation not in self.float for c in self.consumers.get(id(y), ())):
                self._add(y, node.operation.name)
            return
        if kind in MOVES | AVERAGES:
            quantizer = self.quantizers.get(id(node.input_tensors[0]))
            for y in node.outputs if quantizer else ():
                self.quantizers[id(y)] = quantizer
                if kind in AVERAGES:
                    self.learns[id(y)] = False
        elif kind == "Concatenate" and self._is_of_one_range(node):
            self.quantizers[id(y)] = self.quantizers[id(node.input_tensors[0])]
            self.learns[id(y)] = False
        elif not self._is_fused(node):
            self._add(y, node.operation.name, fixed_range(kind, self.bits))

    def _add(self, tensor, name, fixed=None):
        kind = self.rounding if fixed is None else functools.partial(FakeQuant, bits=self.bits)
        quantizer = kind(fixed is not None, name=f"{name}_range")
        quantizer.build(tensor.shape)
        if fixed is not None:
            quantizer.set_range(*fixed)
        self.quantizers[id(tensor)] = quantizer
        self.learns[id(tensor)] = True

    def _share(self):
        """LiteRT demands one range for the inputs and the output of a concatenation; what it then
        learns from is the output, which holds all."""
        for node in self.nodes:
            if kind_of(node.operation) != "Concatenate" or node.operation in self.float:
                continue
            if self._is_of_one_range(node):
                continue
            common = self.quantizers[id(node.outputs[0])]
            shared = {self.quantizers.get(id(x)) for x in node.input_tensors} - {None}
            for key, quantizer in self.quantizers.items():
                if quantizer in shared:
                    self.quantizers[key] = common
                    if key in self.learns:
                        self.learns[key] = False

    def _is_of_one_range(self, node):
        """Whether a concatenation puts pieces of one tensor together."""
        ranges = {self.quantizers.get(id(x)) for x in node.input_tensors}
        return len(ranges) == 1 and ranges != {None}

    def _is_fused(self, node):
        """Whether LiteRT goes on with the output before it rounds."""
        y = node.outputs[0]
        if id(y) in self.outputs or len(self.consumers[id(y)]) != 1:
            return False
        (after,) = self.consumers[id(y)]
        if after.operation in self.float:
            return False
        kind = kind_of(after.operation)
        if kind == "Concatenate":  # whose inputs LiteRT rounds to the range of its output
            return kind_of(node.operation) != "Concatenate"
        if kind == "FoldedNorm":
            return True
        is_product = type(node.operation) in QUANTIZED or type(node.operation) is FoldedNorm
        return kind in FUSED and (is_product or kind_of(node.operation) in FUSES)

    def measure(self, images: np.ndarray, method: str) -> None:
        """Sets the ranges as a method chooses them from the float model's activations."""
        learned = [
            y
            for y in (*self.graph.inputs, *(y for node in self.nodes for y in node.outputs))
            if self.learns.get(id(y)) and not self.quantizers[id(y)].fixed
        ]
        quantizers = [self.quantizers[id(y)] for y in learned]
        limits = extremes(self.graph, learned, images)
        for quantizer, (low, high) in zip(quantizers, limits):
            if not np.isfinite([low, high]).all() or low == high == 0:
                problem = "zero" if low == high == 0 else "NaN or infinite"
                raise ValueError(
                    f"the output of {quantizer.name.removesuffix('_range')!r} is {problem} on all "
                    "calibration images: give others, train the model first, or leave the layer "
                    "in float by keep_float."
                )
        if method != "min_max":
            limits = narrowed(self.graph, learned, images, limits, method)
        for quantizer, (low, high) in zip(quantizers, limits):
            quantizer.set_range(low, high)

    def bound_roots(self) -> None:
        """The range of a reciprocal root ends at that of its input's first step: numbers below it
        are zero, and would widen the range without end."""
        for node in self.nodes:
            if type(node.operation) is ReciprocalRoot and node.operation not in self.float:
                least = self._least(node)
                quantizer = self.quantizers[id(node.outputs[0])]
                quantizer.set_range(0, min(quantizer.limits()[1], least**-0.5))

    def _least(self, node):
        return self.quantizers[id(node.input_tensors[0])].scale() / 2

    def replace(self, operation: keras.Operation, node) -> Callable | None:
        """What `rebuild` asks."""
        if type(operation) is ReciprocalRoot and operation not in self.float:
            return ReciprocalRoot(self._least(node), name=operation.name)
        if operation in self.float and kind_of(operation) in FIXED:
            copy = type(operation).from_config(operation.get_config())
            before = LeaveFloat(name=f"{operation.name}_input")
            return lambda x: copy(before(x))
        kind = QUANTIZED.get(type(operation))
        if kind is None or operation in self.float:
            return None
        if operation not in self.products:
            config = operation.get_config() | {"bits": self.kernel_bits[operation]}
            config.pop("lora_rank", None)  # merged into the kernel
            product = kind.from_config(config)
            product.build(node.input_tensors[0].shape)
            product.set_weights(operation.get_weights())
            self.products[operation] = product
        return self.products[operation]

    def follow(self, tensor, new):
        """What `rebuild` asks about the tensors."""
        if id(tensor) in self.left:
            new = LeaveFloat(name=f"{self.left[id(tensor)]}_float")(new)
        learns = self.learns.get(id(tensor))
        if learns is None:
            return new
        quantizer = self.quantizers[id(tensor)]
        return quantizer(new) if learns else quantizer(new, observe=False)
