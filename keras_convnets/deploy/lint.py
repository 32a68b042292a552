"""Which layers of a model a target cannot run, or runs slowly, and what to use instead.

The layers are not judged by their names: the converter translates the model, and what each layer
has become is looked up in the tables below.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_convnets.deploy import onnx
from keras_convnets.deploy.child import on_tensorflow
from keras_convnets.deploy.export import check_packages
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.micro_sources import RESOLVER
from keras_convnets.deploy.recipes import serves_in_integers
from keras_convnets.deploy.runner import INSTALL
from keras_convnets.graph import graph_nodes
from keras_convnets.graph.rewrite import leaf_graph
from keras_convnets.quiet import silenced_stderr

TARGETS = ("phone-cpu", "phone-gpu", "mcu", "onnx")
MOST_AXES = 4

# Operators of LiteRT that its GPU delegate takes, on tensors of up to four axes, from the switch in
# tflite/delegates/gpu/common/model_builder.cc.
GPU = set(
    re.findall(
        r"\w+",
        """
        ABS ADD ADD_N AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D COS CUMSUM DENSIFY
        DEPTHWISE_CONV_2D DEPTH_TO_SPACE DIV ELU EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD
        FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL
        LOG LOGICAL_AND LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG
        NOT_EQUAL ONE_HOT PACK PAD PADV2 POW PRELU REDUCE_MAX REDUCE_MIN REDUCE_PROD RELU RELU6
        RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT
        SELECT_V2 SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
        SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV UNPACK
        """,
    )
)
NORM = "BatchNormalization, which a convolution takes over"
INSTEAD = {
    "BATCH_MATMUL": "convolutions in place of attention",
    "DIV": "a multiplication by the reciprocal, if the divisor is constant",
    "ELU": "'relu6' or 'leaky_relu'",
    "Erf": "keras.ops.gelu or tanh",
    "GELU": "'relu6' or 'hard_swish'",
    "MIRROR_PAD": "padding with zeros",
    "NEG": NORM,
    "PACK": "keras.ops.concatenate",
    "POW": "multiplications",
    "PRELU": "'leaky_relu', or 'relu' after a convolution",
    "REDUCE_MAX": "keras.layers.MaxPooling2D of the whole map, or an average",
    "RSQRT": NORM,
    "ResizeBicubic": "bilinear interpolation",
    "SQRT": NORM,
    "SQUARE": NORM,
    "SQUARED_DIFFERENCE": NORM,
    "ScaleAndTranslate": "bilinear interpolation without antialiasing",
}


@dataclass(frozen=True)
class Finding:
    """One layer that does not suit a target.

    Attributes:
        layer: its path, as in `graph.flatten`; the name of an operation that is no layer.
        problem: what it becomes there.
        cannot: whether that keeps the model from running there; else it is slow.
        why: what the target lacks or what it costs.
        instead: what to use in its place.
    """

    layer: str
    problem: str
    cannot: bool
    why: str
    instead: str


def lint(model: keras.Model, target: str) -> list[Finding]:
    """Finds the layers of a model that a target cannot run or runs slowly.

    Judged is the plain translation of the layers. What exports lower by themselves (`graph.lower`)
    is not reported, but for LayerNormalization, which stays costly.

    Args:
        model: a Functional or Sequential model with one image input.
        target: `"phone-cpu"` (LiteRT with XNNPACK, float and int8), `"phone-gpu"` (LiteRT's GPU
            delegate), `"mcu"` (TensorFlow Lite Micro, int8) or `"onnx"` (opset 18).

    Returns:
        The findings in the order of execution; none if all is well.

    Raises:
        ValueError: for another target, or a model without a symbolic graph.
        ImportError: if a package that translates is not installed.
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} must be one of {TARGETS}.")
    findings = _ahead(model, target)
    if findings:
        return findings
    if target == "onnx":
        check_packages("ONNX", onnx.INSTALL, "tensorflow", "onnx", "tf2onnx")
    else:
        check_packages("LiteRT", INSTALL, "tensorflow", "ai_edge_litert")
    return on_tensorflow(find, model, target=target)


def _ahead(model, target):
    """Findings that keep a model from being translated at all."""
    with leaf_graph(model) as graph:
        inputs, nodes = graph.inputs, graph_nodes(graph)
        types = {
            node.operation.name: getattr(node.operation, "compute_dtype", "float32")
            for node in nodes
        }
    findings = [
        Finding(
            image.name,
            f"input of shape {tuple(image.shape[1:])}",
            True,
            "files have one fixed image size",
            "input_shape=(224, 224, 3) or the size you need",
        )
        for image in inputs
        if None in image.shape[1:]
    ]
    findings += [
        Finding(image.name, "one more input", True, "exports take one image", "one input")
        for image in inputs[1:]
    ]
    findings += [
        Finding(
            name,
            f"computes in {dtype}",
            True,
            f"exports for {target} start from float32",
            "the dtype policy 'float32', which takes the same weights",
        )
        for name, dtype in types.items()
        if dtype != "float32"
    ]
    return findings


def find(model: keras.Model, target: str) -> list[Finding]:
    """`lint` for the tensorflow backend; see `on_tensorflow`."""
    shape = model.inputs[0].shape[1:]
    if target == "onnx":
        model = onnx.in_the_open(model)
    with leaf_graph(model) as graph:
        nodes = graph_nodes(graph)
        names = [node.operation.name for node in nodes]
        producers = {id(x): i for i, node in enumerate(nodes) for x in node.outputs}
        ends = [producers.get(id(x)) for x in graph.outputs]
        function = _traced(graph, nodes)
        if target == "onnx":
            numbered = _find_onnx(function, shape)
        else:
            numbered = _find_litert(function, shape, target, ends)
    problems = {}
    for i, problem, *rest in sorted(numbered):
        problems.setdefault((names[i], *rest), {})[problem] = None
    return [Finding(name, ", ".join(kinds), *r) for (name, *r), kinds in problems.items()]


def _traced(graph, nodes):
    """The graph as a TensorFlow function; what comes from a node has its number in the name."""
    import tensorflow as tf

    def function(image):
        tensors = {id(graph.inputs[0]): image}
        for i, node in enumerate(nodes):
            with tf.name_scope(f"node{i}_"):
                args, kwargs = node.arguments.fill_in(tensors)
                outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            tensors.update(zip(map(id, node.outputs), outputs))
        return [tensors[id(output)] for output in graph.outputs]

    return function


def _number(name):
    """The number of the node that a tensor or operator is named after, the first if several were
    fused; `None` if there is none."""
    return min(map(int, re.findall(r"\bnode(\d+)_", name)), default=None)


def _find_onnx(function, shape):
    proto = onnx.translate(function, shape, onnx.OPSETS[-1])
    return [
        _row(_number(node.name), node.op_type, True, "no version of ONNX has this operator")
        for node in onnx.lacking_nodes(proto)
    ]


def _row(number, kind, cannot, why):
    return number, kind, cannot, why, INSTEAD.get(kind, "other operators")


def _find_litert(function, shape, target, ends):
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    from keras_convnets.ops._depthwise_tensorflow import maps_padded

    spec = tf.TensorSpec((1, *shape), "float32")
    with maps_padded():
        concrete = tf.function(function, autograph=False).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(concrete)
    file = _file(frozen, shape, int8=False)
    lacking = [step.kind != step.kind.upper() for step in file.steps]  # builtins are in capitals
    if any(lacking):
        return [
            _row(i, step.kind, True, "LiteRT has no such builtin operator")
            for i, step, lacks in zip(_numbers(file, ends), file.steps, lacking)
            if lacks
        ]
    if target == "phone-gpu":
        return _judged(file, ends, _judge_gpu)
    if target == "mcu":
        return _judged(_file(frozen, shape, int8=True), ends, _judge_mcu)
    return _judged(file, ends, _judge_cpu)


def _judged(file, ends, judge):
    problems = [(i, judge(file, step)) for i, step in zip(_numbers(file, ends), file.steps)]
    return [(i, *problem) for i, problem in problems if problem]


def _file(frozen, shape, int8):
    """The function in a .tflite file, float or int8; where LiteRT lacks an operator, it is custom.

    The ranges come from noise: what becomes of the layers does not depend on them.
    """
    import tensorflow as tf

    with silenced_stderr():  # it asks for the model beside its frozen function
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.allow_custom_ops = not int8
    if int8:
        noise = np.random.default_rng(0).standard_normal((1, *shape), "float32")
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: iter([[noise]])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        with silenced_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path.write_bytes(converter.convert())
        return LiteRTFile(path)


def _numbers(file, ends):
    """The number of the node behind each step; constants' steps belong to what comes before."""
    known = dict(zip(file.outputs, ends))
    numbers, latest = [], 0
    for step in file.steps:
        named = [_number(file.tensors[index].name) for index in step.outputs]
        found = [i for i in (*named, *map(known.get, step.outputs)) if i is not None]
        latest = found[0] if found else latest
        numbers.append(latest)
    return numbers


def _judge_cpu(file, step):
    """For a phone's CPU: what makes its int8 form a mixed one, and what is slow in any form."""
    if not serves_in_integers([step.kind]):
        why = (
            "phones do not run it in integers, so in the int8 form only convolutions and dense "
            "layers are"
        )
        return step.kind, False, why, INSTEAD.get(step.kind, "other operators")
    if step.kind == "DEPTHWISE_CONV_2D":
        inputs, kernel = (file.tensors[index].shape for index in step.inputs[:2])
        if kernel[3] != inputs[3]:
            return (
                "DEPTHWISE_CONV_2D with a depth multiplier",
                False,
                "XNNPACK takes one output per channel; others take six times as long",
                "a 1x1 convolution before it that makes the channels more",
            )
    return None


def _judge_gpu(file, step):
    axes = max((len(file.tensors[i].shape) for i in (*step.inputs, *step.outputs)), default=0)
    if step.kind not in GPU:
        why = "the GPU delegate lacks it: the graph is split, and the data go to the CPU and back"
        return step.kind, False, why, INSTEAD.get(step.kind, "other operators")
    if axes > MOST_AXES:
        why = "the GPU delegate takes tensors of four axes at most, and leaves others to the CPU"
        return f"{step.kind} of {axes} axes", False, why, "tensors of up to four axes"
    if step.kind == "CONV_2D":
        inputs, kernel = (file.tensors[index].shape for index in step.inputs[:2])
        groups = inputs[3] // kernel[3]
        if 1 < groups < inputs[3] and (kernel[3] % 4 or kernel[0] // groups % 4):
            return (
                f"CONV_2D in {groups} groups",
                False,
                f"the GPU delegate takes it apart into {groups} convolutions unless the channels "
                "of a group are a multiple of 4",
                "groups of 4, 8, 12, ... channels",
            )
    return None


def _judge_mcu(file, step):
    if step.kind not in RESOLVER:
        why = "TensorFlow Lite Micro has no such operator"
        return step.kind, True, why, INSTEAD.get(step.kind, "other operators")
    floats = [file.tensors[index].dtype == "float32" for index in step.outputs]
    if all(floats) and step.kind != "DEQUANTIZE":
        why = "the converter has no int8 form of it, and most microcontrollers are slow at floats"
        return f"{step.kind} in float32", False, why, INSTEAD.get(step.kind, "other operators")
    return None
