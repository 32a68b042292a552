"""A quantized model as a .tflite file that has exactly its scales."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_convnets.deploy.child import on_tensorflow
from keras_convnets.deploy.convert import converter_of, run_converter, save_static
from keras_convnets.deploy.export import check_model, check_packages, outputs_of, write_checked
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.runner import INSTALL, LiteRTModel
from keras_convnets.graph.rewrite import leaf_graph, rebuild
from keras_convnets.layers.fake_quant import FakeQuant
from keras_convnets.quantization.inference import for_inference
from keras_convnets.quantization.mirror import as_integers
from keras_convnets.quantization.operators import FIXED, kind_of

CHECKED_IMAGES = 8
LEAST_COSINE = 0.99
PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D")
# Step and zero point of the operators that have a range of their own, as `FIXED`.
STEPS_OF_FIXED = {(1 / 256, -128), (1 / 128, 0)}


def export_litert(model: keras.Model, path: str | os.PathLike) -> Path:
    """Writes a quantized model as a .tflite file with exactly its scales: integers throughout, but
    for what was left in float, input and output too: int8, or int16 for the scheme `"int16x8"`.

    No images are needed. On the jax and torch backends a child process with the tensorflow backend
    converts a saved copy. The file is run by LiteRT's own kernels (those of XNNPACK round
    otherwise) and compared with the model before it gets its name.

    Args:
        model: what `quantize_aware` gave, trained or not; it stays as it is.
        path: the file to write; one that exists is replaced.

    Returns:
        The path.

    Raises:
        ValueError: for a model that is not quantized, a range that is zero, NaN or infinite, a
            path that cannot be written, or a file that disagrees with the model. There is no file
            then, and an older one is unchanged.
        ImportError: if tensorflow or ai-edge-litert is not installed.
    """
    check_model(model, "a .tflite")
    _check_ranges(model)
    check_packages("LiteRT", INSTALL, "tensorflow", "ai_edge_litert")
    return write_checked(
        path, lambda: on_tensorflow(convert, model), lambda part: _check_file(model, part)
    )


def _roundings(model):
    return [layer for layer in model.layers if isinstance(layer, FakeQuant)]


def _check_ranges(model):
    roundings = _roundings(model)
    if not roundings:
        raise ValueError(
            f"model={model.name!r} is not quantized: give what quantize_aware returns, or export "
            "the float model with deploy.export_litert(..., quantize='int8')."
        )
    for layer in roundings:
        if not 0 < layer.scale() < np.inf:
            raise ValueError(
                f"layer {layer.name!r} has the range {layer.limits()}, which must be finite and "
                "wider than zero: train with finite images and a lower learning rate."
            )


def convert(model: keras.Model) -> bytes:
    """The content of the file. For the tensorflow backend, see `on_tensorflow`."""
    import tensorflow as tf

    wide = any(layer.bits == 16 for layer in _roundings(model))
    form = for_inference(model)
    with tempfile.TemporaryDirectory() as folder:
        save_static(_of_small_steps(form) if wide else form, None, folder)
        converter = converter_of(folder)
        # It finds the ranges in the model and needs no images.
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        content = _without_casts(run_converter(converter, model.name))
    return _widened(content) if wide else content


def _of_small_steps(model):
    """A copy that has the steps of its 16 bits in 8, with nearly all values out of range.

    The converter's own 16 bits give addends and factors 8, and the wrong width to biases. What it
    makes of 8 is complete, and has numbers of the right steps, to be widened.
    """
    with leaf_graph(model) as graph:
        small = {}

        def replace(operation, node):
            if not isinstance(operation, FakeQuant):
                return None
            if operation not in small:
                (x,), step = node.input_tensors, operation.scale()
                kind = kind_of(x._keras_history.operation)
                layer = small[operation] = FakeQuant(fixed=True, name=operation.name)
                layer.build(())
                layer.set_range(*FIXED.get(kind, (-128 * step, 127 * step)))
            return small[operation]

        return rebuild(graph, replace)


def _without_casts(content):
    """The file without what `LeaveFloat` has kept integers away by."""
    from ai_edge_litert.tools import flatbuffer_utils

    if "CAST" not in LiteRTFile(content).operators():
        return content
    model = flatbuffer_utils.convert_bytearray_to_object(content)
    (graph,) = model.subgraphs
    kinds = [flatbuffer_utils.opcode_to_name(model, op.opcodeIndex) for op in graph.operators]
    origin = {}
    for op, kind in zip(graph.operators, kinds):
        op.inputs = [origin.get(i, i) for i in op.inputs]
        if kind == "CAST":
            origin[op.outputs[0]] = op.inputs[0]
    graph.operators = [op for op, kind in zip(graph.operators, kinds) if kind != "CAST"]
    graph.outputs = [origin.get(i, i) for i in graph.outputs]
    for signature in model.signatureDefs or ():
        for end in signature.outputs:
            end.tensorIndex = origin.get(end.tensorIndex, end.tensorIndex)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _widened(content):
    """A file of 8 bits with activations of 16 and biases of 64, in which LiteRT adds up then."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(content)
    (graph,), types = model.subgraphs, schema.TensorType
    operators = [
        (flatbuffer_utils.opcode_to_name(model, o.opcodeIndex), o) for o in graph.operators
    ]
    kernels = {op.inputs[1] for kind, op in operators if kind in PRODUCTS}
    biases = {op.inputs[2] for kind, op in operators if kind in PRODUCTS}

    def fill(tensor, values):
        buffer = schema.BufferT()  # of its own, since tensors may share one
        buffer.data = np.frombuffer(values.tobytes(), "uint8")
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)

    for i, tensor in enumerate(graph.tensors):
        data = model.buffers[tensor.buffer].data
        if i in biases and tensor.type == types.INT32:
            tensor.type = types.INT64
            fill(tensor, np.frombuffer(bytes(data), "<i4").astype("<i8"))
        elif i not in kernels and tensor.type == types.INT8:
            tensor.type, ranges = types.INT16, tensor.quantization
            (step,), (zero,) = ranges.scale, ranges.zeroPoint
            if data is not None and len(data):
                values = (np.frombuffer(bytes(data), "int8").astype("float64") - zero) * step
                step = max(np.abs(values).max(), 1e-30) / 32767
                fill(tensor, np.round(values / step).astype("<i2"))
            elif (step, zero) in STEPS_OF_FIXED:
                step = 1 / 32768
            ranges.scale, ranges.zeroPoint = [step], [0]
    for kind, op in operators:
        if kind in ("ADD", "SUB"):
            op.builtinOptions.potScaleInt16 = False  # steps are not powers of two
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _check_file(model, path):
    """Raises ValueError unless file and model agree on values all over the input's range."""
    low, high = _roundings(model)[0].limits()
    random = np.random.default_rng(0)
    images = random.uniform(low, high, (CHECKED_IMAGES, *model.inputs[0].shape[1:]))
    have = LiteRTModel(path, xnnpack=False).predict(images)
    want = outputs_of(as_integers(model), images.astype("float32"))
    for i, (ours, theirs) in enumerate(zip(want, have, strict=True)):
        ours, theirs = ours.ravel().astype("float64"), theirs.ravel().astype("float64")
        size = max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-30)
        if ours.shape != theirs.shape or not ours @ theirs >= LEAST_COSINE * size:
            raise ValueError(
                f"model={model.name!r} and its LiteRT form disagree in output {i}: the cosine is "
                f"{ours @ theirs / size:.4f}, less than {LEAST_COSINE}; nothing was written."
            )
