"""Forms of a .tflite file that the converter does not make: by ai-edge-quantizer, operator by
operator."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection

import numpy as np

from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.quiet import silenced_stderr

SIGNATURE, INPUT = "serving_default", "image"
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


def _to_quantize(content, form):
    """The operators of a file to quantize. With anything that phones do not run in integers, a
    LayerNorm say, these are the products only: all else would lose more at the borders between
    integers and floats than it gains."""
    from ai_edge_quantizer.qtyping import TFLOperationName

    operators = set(LiteRTFile(content).operators())
    if form == "int4" or not serves_in_integers(operators):
        return PRODUCTS
    if form == "int16x8":
        return ("*",)
    return sorted(operators & INT8_OPERATORS & {name.value for name in TFLOperationName})


def quantize_file(content: bytes, form: str, images: np.ndarray | None) -> bytes:
    """A quantized .tflite file from one in float32.

    Args:
        content: of a file with one input, named `INPUT` in its signature.
        form: `"int8"` or `"int16x8"`, of convolutions and dense layers only if the file has other
            operators than `INT8_OPERATORS` and `FLOAT_OPERATORS`; or `"int4"`, of their weights.
        images: what the input takes, `(count, height, width, channels)`; for `"int4"` not used.

    Raises:
        ImportError: if ai-edge-quantizer is not installed.
    """
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    for operator in _to_quantize(content, form):
        if form == "int4":
            recipe.add_weight_only_config(".*", operator, num_bits=4)
        else:
            recipe.add_static_config(".*", operator, ACTIVATION_BITS[form], weight_num_bits=8)
    with silenced_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the memory of a calibration
        ranges = None
        if form in ACTIVATION_BITS:
            # By itself it takes moving averages, which cut the extremes off.
            calibrator = Calibrator(content, qsv_update_func=_widest)
            calibrator.calibrate({SIGNATURE: [{INPUT: image[None]} for image in images]}, recipe)
            ranges = calibrator.get_model_qsvs()
        quantizer = Quantizer(content, recipe.get_quantization_recipe())
        result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _widest(ranges, others):
    return {
        "min": np.minimum(ranges["min"], others["min"]),
        "max": np.maximum(ranges["max"], others["max"]),
    }
