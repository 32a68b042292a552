"""Quantized forms of a .tflite file: in integers throughout by TensorFlow's quantizer, others by
ai-edge-quantizer, operator by operator."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection

import numpy as np

from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.regions import in_int8
from keras_convnets.quiet import silenced_stderr

PRODUCTS = ("CONV_2D", "FULLY_CONNECTED")
# What XNNPACK runs in int8, or a look-up table does.
INT8_OPERATORS = {
    "ADD",
    "CONCATENATION",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "GELU",
    "LEAKY_RELU",
    "LOGISTIC",
    "MAX_POOL_2D",
    "MEAN",
    "MUL",
    "PAD",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
    "SLICE",
    "SPLIT",
    "STRIDED_SLICE",
    "SUB",
    "TANH",
    "TRANSPOSE",
    "TRANSPOSE_CONV",
}
# Five to forty times slower in int8 than in float, where they are islands: to float and back costs
# about as much as the operator. See benchmarks/results/litert_operators.md.
FLOAT_OPERATORS = {"AVERAGE_POOL_2D", "HARD_SWISH", "RELU", "RELU6", "SOFTMAX"}
# What these lose in int8, a network that is partly in float need not lose: sums and means where
# branches of unequal ranges meet, a gate whose steps are 1/256.
LOSSY_OPERATORS = {"ADD", "LOGISTIC", "MEAN", "SUB"}
FEW_VALUES = 5_000  # take 20 microseconds at most, in any form

ACTIVATION_BITS = {"int8": 8, "int16x8": 16}


def runs_in_integers(content: bytes) -> bool:
    """Whether a file is fast in integers throughout: all its operators are among `INT8_OPERATORS`,
    but for a softmax of a thousand classes and the like."""
    file = LiteRTFile(content)
    return all(
        step.kind in INT8_OPERATORS or (step.kind in FLOAT_OPERATORS and _is_small(file, step))
        for step in file.steps
    )


def serves_in_integers(operators: Collection[str]) -> bool:
    """Whether a file of these operators is int8 throughout, but for `FLOAT_OPERATORS`."""
    return set(operators) <= INT8_OPERATORS | FLOAT_OPERATORS


def _is_small(file, step):
    return math.prod(file.tensors[step.outputs[0]].shape) < FEW_VALUES


def quantize_file(content: bytes, form: str, images: np.ndarray | None) -> bytes:
    """A quantized .tflite file from one in float32.

    Args:
        content: of a file with one input.
        form: `"int8"` or `"int16x8"`; if the file has other operators than `INT8_OPERATORS` and
            `FLOAT_OPERATORS`, of convolutions and dense layers only, in `"int8"` also of what
            saves time between them (`regions.in_int8`); or `"int4"`, of their weights.
        images: what the input takes, `(count, height, width, channels)`; for `"int4"` not used.

    Raises:
        ImportError: if ai-edge-quantizer or networkx is not installed.
    """
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    for name, operator in _to_quantize(content, form):
        if form == "int4":
            recipe.add_weight_only_config(name, operator, num_bits=4)
        else:
            recipe.add_static_config(name, operator, ACTIVATION_BITS[form], weight_num_bits=8)
    with silenced_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = Quantizer(content, recipe.get_quantization_recipe())
        ranges = _named_ranges(content, images) if form in ACTIVATION_BITS else None
        result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _to_quantize(content, form):
    """The operators of a file to quantize, as regular expressions of their outputs' names and
    kinds. With anything that phones do not run in integers, a LayerNorm say, these are the
    products, and what saves conversions between them."""
    from ai_edge_quantizer.qtyping import TFLOperationName

    file, known = LiteRTFile(content), {name.value for name in TFLOperationName}
    products = [(".*", kind) for kind in PRODUCTS]
    if form == "int4":
        return products
    if serves_in_integers(file.operators()):
        kinds = {"*"} if form == "int16x8" else {*file.operators()} & INT8_OPERATORS & known
        return [(".*", kind) for kind in sorted(kinds)]
    others = (INT8_OPERATORS - LOSSY_OPERATORS) & known
    found = in_int8(file, PRODUCTS, others) if form == "int8" else []
    return products + [(_name(file, step), step.kind) for step in found]


def _name(file, step):
    names = "".join(f"{file.tensors[index].name};" for index in step.outputs)
    return f"^{re.escape(names)}$"


def quantize_throughout(content: bytes, images: np.ndarray, ends: str) -> bytes:
    """A .tflite file in int8 throughout from one in float32.

    Args:
        content: of the file, with one input.
        images: what the input takes, `(count, height, width, channels)`.
        ends: type of its input and outputs, `"int8"` or `"uint8"`.

    Raises:
        ImportError: if tensorflow or ai-edge-litert is not installed.
    """
    import tensorflow as tf
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils
    from tensorflow.lite.python.convert import mlir_quantize

    model = flatbuffer_utils.convert_bytearray_to_object(content)
    for index, (low, high) in measure_ranges(content, images).items():
        quantization = schema.QuantizationParametersT()
        quantization.min, quantization.max = [low], [high]
        model.subgraphs[0].tensors[index].quantization = quantization
    measured = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    ends = tf.dtypes.as_dtype(ends)
    with silenced_stderr():
        return mlir_quantize(measured, input_data_type=ends, output_data_type=ends)


def measure_ranges(content: bytes, images: np.ndarray) -> dict[int, tuple[float, float]]:
    """The least and the largest value that each tensor of a float file has for some images, by the
    tensor's index; of what the operators write, and the input. Of a tensor that is zero throughout,
    such as the output of a ReLU that lets nothing pass, 0 and 1: XNNPACK refuses a step of 0.

    The converter's own calibration lets ADD write over one of its inputs, which then gets the range
    of the sum: where the branch of a residual block is small, most of its bits are lost. Here each
    tensor has memory of its own.

    Raises:
        ImportError: if ai-edge-litert is not installed.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    file = LiteRTFile(content)
    with silenced_stderr():
        interpreter = Interpreter(
            model_content=content,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        interpreter.allocate_tensors()
    (image_index,) = file.inputs
    written = [image_index, *(index for step in file.steps for index in step.outputs)]
    written = [index for index in written if file.tensors[index].dtype == "float32"]
    lows, highs = np.full(len(written), np.inf), np.full(len(written), -np.inf)
    for image in images:
        interpreter.set_tensor(image_index, image[None])
        interpreter.invoke()
        ends = [(x.min(), x.max()) for x in map(interpreter.get_tensor, written)]
        lows = np.minimum(lows, [low for low, _ in ends])
        highs = np.maximum(highs, [high for _, high in ends])
    highs[(lows == 0) & (highs == 0)] = 1
    return dict(zip(written, zip(lows.tolist(), highs.tolist())))


def _named_ranges(content, images):
    """`measure_ranges` as ai-edge-quantizer takes them. Its own calibration is ten times slower,
    and takes moving averages, which cut the extremes off."""
    tensors = LiteRTFile(content).tensors
    return {
        tensors[index].name: {
            "min": np.full([1] * len(tensors[index].shape), low, "float32"),
            "max": np.full([1] * len(tensors[index].shape), high, "float32"),
        }
        for index, (low, high) in measure_ranges(content, images).items()
    }
