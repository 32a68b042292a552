"""Forms of a .tflite file that the converter does not make: by ai-edge-quantizer, operator by
operator."""

from __future__ import annotations

import warnings

import numpy as np

from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.quiet import silenced_stderr

SIGNATURE = "serving_default"
PRODUCTS = ("CONV_2D", "FULLY_CONNECTED")
# What XNNPACK runs in int8, or a look-up table does. A network that has anything else, a LayerNorm
# say, loses more at the borders between integers and floats than it gains.
INT8_OPERATORS = {
    "ADD",
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "GELU",
    "HARD_SWISH",
    "LEAKY_RELU",
    "LOGISTIC",
    "MAX_POOL_2D",
    "MEAN",
    "MUL",
    "PAD",
    "RELU",
    "RELU6",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
    "SLICE",
    "SOFTMAX",
    "SPLIT",
    "STRIDED_SLICE",
    "SUB",
    "TANH",
    "TRANSPOSE",
    "TRANSPOSE_CONV",
}


ACTIVATION_BITS = {"int8": 8, "int16x8": 16}


def runs_in_integers(content: bytes) -> bool:
    """Whether all operators of a file are among `INT8_OPERATORS`."""
    return set(LiteRTFile(content).operators()) <= INT8_OPERATORS


def quantize_file(content: bytes, form: str, images: np.ndarray | None) -> bytes:
    """A quantized .tflite file from one in float32.

    Args:
        content: of a file with one input.
        form: `"int8"` or `"int16x8"`, of convolutions and dense layers only unless the file
            `runs_in_integers`; or `"int4"`, of their weights.
        images: what the input takes, `(count, height, width, channels)`; for `"int4"` not used.

    Raises:
        ImportError: if ai-edge-quantizer is not installed.
    """
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    for operator in ("*",) if form != "int4" and runs_in_integers(content) else PRODUCTS:
        if form == "int4":
            recipe.add_weight_only_config(".*", operator, num_bits=4)
        else:
            recipe.add_static_config(".*", operator, ACTIVATION_BITS[form], weight_num_bits=8)
    name, content = _with_signature(content)
    with silenced_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the memory of a calibration
        ranges = None
        if form in ACTIVATION_BITS:
            # By itself it takes moving averages, which cut the extremes off.
            calibrator = Calibrator(content, qsv_update_func=_widest)
            calibrator.calibrate({SIGNATURE: [{name: image[None]} for image in images]}, recipe)
            ranges = calibrator.get_model_qsvs()
        quantizer = Quantizer(content, recipe.get_quantization_recipe())
        result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _widest(ranges, others):
    return {
        "min": np.minimum(ranges["min"], others["min"]),
        "max": np.maximum(ranges["max"], others["max"]),
    }


def _with_signature(content):
    """The file with its inputs and outputs by name, which the quantizer asks for."""
    from ai_edge_litert.schema_py_generated import SignatureDefT, TensorMapT
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(content)
    graph = model.subgraphs[0]

    def tensor_map(kind, indices):
        entries = []
        for i, index in enumerate(indices):
            entry = TensorMapT()
            entry.name, entry.tensorIndex = f"{kind}{i}".encode(), int(index)
            entries.append(entry)
        return entries

    signature = SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE.encode(), 0
    signature.inputs = tensor_map("input", graph.inputs)
    signature.outputs = tensor_map("output", graph.outputs)
    model.signatureDefs = [signature]
    return "input0", flatbuffer_utils.convert_object_to_bytearray(model)
