"""LiteRT's integer arithmetic in float operations: a model that gives what the device will.

Rounding to the nearest step leaves the last bit open, as the kernels do not do quite that: they
multiply by numbers of 31 bits and round twice (Jacob et al. 2018, section 2.2), or have numbers of
16 bits on the way. A bit here and there is more in the layers after it. So the operators below
repeat the kernels; of all others the nearest step is the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_convnets.graph.rewrite import consumers_of, graph_nodes, in_turn, leaf_graph, rebuild
from keras_convnets.layers.fake_quant import (
    FakeQuant,
    QuantDepthwiseConv2D,
    kernel_scales,
)
from keras_convnets.ops import depthwise_conv2d
from keras_convnets.quantization.inference import for_inference
from keras_convnets.quantization.operators import FUSED, kind_of, ranges_of


def as_integers(model: keras.Model) -> keras.Model:
    """What LiteRT's own kernels compute of a quantized model, for predictions on any backend.

    BatchNorm is folded, biases are int32, sums are of integers, and are rounded as there. On x86
    outputs are the exact ones for convolutions, additions, products, means, poolings, ReLU, sigmoid
    and hard-swish; XNNPACK's kernels, which round otherwise, differ by a few steps. Of 16
    bits most values are the exact ones, the others a step off.

    Args:
        model: what `quantize_aware` gave, trained or not; it stays as it is.

    Raises:
        ValueError: for a bias that int32 does not hold.
    """
    return in_turn(model, for_inference, _mirrored)


def _mirrored(model):
    with leaf_graph(model) as graph:
        return rebuild(graph, _Mirror(graph).replace)


class _Mirror:
    def __init__(self, graph):
        self.nodes = graph_nodes(graph)
        self.consumers = consumers_of(self.nodes)
        self.ranges = ranges_of(self.nodes)

    def replace(self, operation, node):
        """What `rebuild` asks."""
        make = {
            "QuantConv2D": _product,
            "QuantDepthwiseConv2D": _product,
            "Add": _add,
            "Subtract": _subtract,
            "Multiply": _multiply,
            "Matmul": _matmul,
            "GlobalAveragePooling1D": _mean,
            "GlobalAveragePooling2D": _mean,
            "Mean": _mean,
            "ReciprocalRoot": _root,
            "AveragePooling2D": _pool,
            "hard_silu": _hard_silu,
        }.get(kind_of(operation))
        if make is _mean and self._keeps_map(operation, node):
            make = _mean_of_map
        inputs = [self.ranges.get(id(x)) for x in node.input_tensors]
        output = self._rounding(node.outputs[0])
        if make is None or output is None or None in inputs:
            return None
        if output.bits == 16:
            return _wide_product(operation, inputs, output) if make is _product else None
        return make(operation, node, inputs, output)

    def _keeps_map(self, operation, node):
        """Whether a mean over maps gives maps in LiteRT, also where a reshaped one is meant."""
        shape = node.input_tensors[0].shape
        if len(shape) != 4 or _axes(operation, shape) != (1, 2):
            return False
        if operation.keepdims:
            return True
        (y,) = node.outputs
        for kind in ("FakeQuant", "Reshape", "FakeQuant"):
            following = self.consumers.get(id(y), ())
            if len(following) != 1 or kind_of(following[0].operation) != kind:
                return False
            (y,) = following[0].outputs
        return True

    def _rounding(self, tensor):
        """The FakeQuant that a tensor comes to, beyond an activation that is fused and the end of
        a dense layer."""
        for node in self.consumers.get(id(tensor), ()):
            if isinstance(node.operation, FakeQuant):
                return node.operation
            if kind_of(node.operation) in {*FUSED, "Reshape"}:
                return self._rounding(node.outputs[0])
        return None


def _product(layer, node, inputs, output):
    step, out = _step(inputs[0]), _step(output)
    depthwise = isinstance(layer, QuantDepthwiseConv2D)
    kernel = ops.convert_to_numpy(layer.kernel)
    steps = kernel_scales(kernel, layer.bits, depthwise).astype("float64")
    kernel = np.round(kernel / (steps[:, None] if depthwise else steps)).astype("float32")
    bias = np.zeros(len(steps))
    if layer.bias is not None:
        bias = np.round(ops.convert_to_numpy(layer.bias) / (step * steps))
    # LiteRT takes depthwise channels by eights, and those left over by other code.
    left = np.arange(len(steps)) >= len(steps) // 8 * 8 if depthwise else False
    rescaled = rescale(step * steps / out, left)

    def multiply(x):
        x = ops.round(x / step)
        if depthwise:
            y = depthwise_conv2d(x, kernel, layer.strides, layer.padding, layer.dilation_rate)
        else:
            y = ops.conv(x, kernel, layer.strides, layer.padding, dilation_rate=layer.dilation_rate)
        return rescaled(y + bias.astype("float32")) * out

    return multiply


def _wide_product(layer, inputs, output):
    """With activations of 16 bits, whose sums have 64, LiteRT rescales by numbers of 15 bits."""
    kernel = ops.convert_to_numpy(layer.kernel)
    steps = kernel_scales(kernel, layer.bits, isinstance(layer, QuantDepthwiseConv2D))
    factors = _step(inputs[0]) * steps.astype("float64") / _step(output)
    mantissas, exponents = np.frexp(factors)
    rounded = np.minimum(np.round(mantissas * 2**15), 2**15 - 1) * np.exp2(exponents - 15.0)
    ratio = (rounded / factors).astype("float32")
    return lambda x: layer(x) * ratio


def _add(operation, node, inputs, output, sign=1):
    if len(inputs) != 2:
        return None
    steps, zeros = [_step(x) for x in inputs], [_zero_point(x) for x in inputs]
    first, second = (np.arange(-128, 128) - int(zero) for zero in zeros)
    table = sums(first[:, None], second, *steps, _step(output), sign)
    table = (table * _step(output)).astype("float32").ravel()

    def add(*xs):
        x, y = (ops.cast(x + zero, "int32") for x, zero in zip(_integers(xs, steps), zeros))
        return ops.take(table, 256 * (x + 128) + y + 128, axis=0)

    return add


def sums(
    x: np.ndarray, y: np.ndarray, x_step: float, y_step: float, out: float, sign: int = 1
) -> np.ndarray:
    """LiteRT's ADD and, with a negative sign, its SUB: of numbers with 20 bits behind the point,
    which SUB rounds twice, and ADD, for eight at once, only in the end.

    Args:
        x, y: integers without the zero point, -255 to 255.
        x_step, y_step, out: the steps of inputs and output.
        sign: of the second.
    """
    unit = 2 * max(x_step, y_step)
    x, y = (
        _multiplied(v << 20, step / unit, twice=sign < 0) for v, step in ((x, x_step), (y, y_step))
    )
    return _multiplied(x + sign * y, unit / (2**20 * out), twice=True)


def _subtract(operation, node, inputs, output):
    return _add(operation, node, inputs, output, sign=-1)


def _multiply(operation, node, inputs, output):
    if len(inputs) == 1:
        return _scale(node, inputs[0], output)
    if len(inputs) != 2:
        return None
    steps, out = [_step(x) for x in inputs], _step(output)
    factor = np.float32(steps[0]) * np.float32(steps[1]) / np.float32(out)
    rescaled = rescale(factor, away=True)

    def multiply(*xs):
        x, y = _integers(xs, steps)
        return rescaled(x * y) * out

    return multiply


def _scale(node, rounding, output):
    """A product with a number, which is 255 steps in LiteRT, from zero; `None` for an array."""
    numbers = [y for y in node.arguments.args if y is not node.input_tensors[0]]
    if len(numbers) != 1 or np.size(ops.convert_to_numpy(numbers[0])) != 1:
        return None
    number = float(np.ravel(ops.convert_to_numpy(numbers[0]))[0])
    step, out = _step(rounding), _step(output)
    unit = np.float32(abs(number) / 255)
    rescaled = rescale(np.float32(step) * unit / np.float32(out), away=True)

    def scale(*xs):
        x = next(x for x in xs if ops.shape(x))
        return rescaled(ops.round(x / step) * float(np.sign(number) * 255)) * out

    return scale


def _matmul(operation, node, inputs, output):
    steps, out = [_step(x) for x in inputs], _step(output)
    rescaled = rescale(float(np.float32(steps[0]) * np.float32(steps[1])) / out, away=True)
    return lambda *xs: rescaled(ops.matmul(*_integers(xs, steps))) * out


def _integers(xs, steps):
    """Of layers that take a list, and of operations that take each as an argument."""
    xs = xs[0] if len(xs) == 1 else xs
    return [ops.round(x / step) for x, step in zip(xs, steps)]


def _mean(operation, node, inputs, output):
    shape = node.input_tensors[0].shape
    step, out, axes = _step(inputs[0]), _step(output), _axes(operation, shape)
    values = int(np.prod([shape[axis] for axis in axes]))
    rescaled = rescale(step / out, away=True, values=values)

    def mean(x, mask=None):
        return rescaled(ops.sum(ops.round(x / step), axes, keepdims=operation.keepdims)) * out

    return mean


def _axes(operation, shape):
    axes = getattr(operation, "axis", tuple(range(1, len(shape) - 1)))
    return tuple(sorted(np.ravel(axes).astype(int) % len(shape)))


def _mean_of_map(operation, node, inputs, output):
    """LiteRT adds numbers that have the zero point in them, and takes it away, rounded. It takes
    channels by sixteens, and those left over by other code; its factors are of 24 bits."""
    shape = node.input_tensors[0].shape
    step, out, zero = _step(inputs[0]), _step(output), _zero_point(inputs[0])
    left = np.arange(shape[3]) >= shape[3] // 16 * 16
    rescaled = rescale(np.float32(step) / (np.float32(out) * shape[1] * shape[2]), left)
    shift = np.float32(zero) * np.float32(step) / np.float32(out)
    shift = np.trunc(shift + np.copysign(np.float32(0.5), shift))

    def mean(x):
        total = ops.sum(ops.round(x / step) + zero, axis=(1, 2), keepdims=operation.keepdims)
        return (rescaled(total) - shift) * out

    return mean


def _pool(operation, node, inputs, output):
    step, zero = _step(inputs[0]), _zero_point(inputs[0])
    copy = type(operation).from_config(operation.get_config())
    return lambda x: (_half_away(copy(ops.round(x / step)) + zero) - zero) * step


def _step(quantizer):
    """As the file has it, in 32 bits."""
    return float(np.float32(quantizer.scale()))


def _zero_point(quantizer):
    low, _ = quantizer.limits()
    return float(np.floor(-128 - low / quantizer.scale() + 0.5))


def rescale(
    factors: np.ndarray | float, away: np.ndarray | bool = False, values: int = 1
) -> Callable:
    """The function that multiplies integers, which float32 must hold, by factors of 31 bits: it
    rounds to a power of two (the one below a factor), then to the nearest step.

    Args:
        factors: one, or one for each channel.
        away: whether, of two that are equally near, it takes the one away from zero, else the upper
            one.
        values: the number of values that the integers are sums of, to divide by.
    """
    mantissas, exponents = np.frexp(np.asarray(factors, "float64"))
    bits = int(np.log2(values))
    mantissas = np.round(mantissas * 2**31).astype("int64") * 2**bits // values
    exponents = exponents.astype("float64") - bits
    larger = np.exp2(np.maximum(exponents, 0)).astype("float32")
    share = np.exp2(np.minimum(exponents, 0)).astype("float32")
    # The factor is a number of 31 bits: digits of 10 bits, as float32 holds their products.
    digits = mantissas >> 20, mantissas >> 10 & 1023, mantissas & 1023
    high, middle, low = (digit.astype("float32") for digit in digits)

    # Products instead of quotients: TensorFlow's graphs make them so, by reciprocals that are not
    # exact even of powers of two.
    def rescaled(x):
        x = x * larger
        upper = ops.floor(x * 2**-12)
        lower = x - 4096 * upper
        carry = ops.floor(lower * low * 2**-10)
        carry = ops.floor((lower * middle + 4 * upper * low + carry) * 2**-10)
        carry = ops.floor((lower * high + 4 * upper * middle + carry + 1024) * 2**-11)
        x = (2 * upper * high + carry) * share
        nearest = ops.floor(x + 0.5)
        if not np.any(away):
            return nearest
        return ops.where(ops.logical_and(away, x < 0), -ops.floor(0.5 - x), nearest)

    return rescaled


def _half_away(x):
    return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)


def _hard_silu(operation, node, inputs, output):
    step, out = _step(inputs[0]), _step(output)
    values = np.arange(-255, 256)  # whatever the zero point
    table = (hard_swish(values, step, out) * out).astype("float32")
    return lambda x: ops.take(table, ops.cast(ops.round(x / step), "int32") + 255, axis=0)


def _root(operation, node, inputs, output):
    step, out = _step(inputs[0]), _step(output)
    table = reciprocal_root(np.arange(1, 256), step, out)
    table = (np.append(255, table) * out).astype("float32")  # the largest value for zero
    return lambda x: ops.take(table, ops.cast(ops.round(x / step), "int32"), axis=0)


def reciprocal_root(values: np.ndarray, step: float, out: float) -> np.ndarray:
    """LiteRT's RSQRT, which takes roots with 20 bits behind the point.

    Args:
        values: integers without the zero point, 1 to 255.
        step, out: the steps of input and output.
    """
    mantissa, exponent = np.frexp(1 / (np.sqrt(step) * out * 2**20))
    roots = np.floor(2**20 / np.sqrt(values) + 0.5)
    return _divided(np.floor(roots * mantissa + 0.5), -int(exponent))


def hard_swish(values: np.ndarray, step: float, out: float) -> np.ndarray:
    """LiteRT's HARD_SWISH, which has 16 bits.

    Args:
        values: integers without the zero point, -255 to 255.
        step, out: the steps of input and output.
    """
    values = values.astype("int64") * 128
    factor, exponent = _sixteen_bits(step / 128 / out)
    gate_factor, gate_exponent = _sixteen_bits(step / 128 / (3 / 2**15))
    product, gate = _high(values, factor), values
    if gate_exponent > 0:
        gate = _high(_saturated(gate << (gate_exponent - 1)), gate_factor)
        gate = _saturated(gate << 1)
    else:
        gate = _divided(_high(gate, gate_factor), -gate_exponent)
    gate = (gate + 2**15) >> 1
    product = np.trunc(gate * product / 2**15).astype("int64")
    return _divided(product, -exponent)


def _multiplied(values, factor, twice):
    """By a number of 31 bits below 1; rounded once, or to 31 bits before."""
    mantissa, exponent = np.frexp(factor)
    products = values * int(np.round(mantissa * 2**31))
    if twice:
        return _divided((products + 2**30) >> 31, -int(exponent))
    bits = 31 - int(exponent)
    return (products + 2 ** (bits - 1)) >> bits


def _sixteen_bits(factor):
    mantissa, exponent = np.frexp(factor)
    return (int(np.round(mantissa * 2**31)) + 2**15) >> 16, int(exponent)


def _high(values, factor):
    product = values * factor
    return _saturated(np.trunc((product + np.where(product < 0, 1 - 2**14, 2**14)) / 2**15))


def _saturated(values):
    return np.clip(values, -(2**15), 2**15 - 1).astype("int64")


def _divided(values, bits):
    """By a power of two, to the nearest integer."""
    quotients = values / 2**bits
    return (np.sign(quotients) * np.floor(np.abs(quotients) + 0.5)).astype("int64")
