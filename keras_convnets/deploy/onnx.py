"""ONNX files from a model of any backend, each checked before it gets its name."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from keras_convnets.deploy.child import on_tensorflow
from keras_convnets.deploy.export import check_model, check_packages, outputs_of, write_checked
from keras_convnets.graph import fold_batchnorm, reparameterize, rewrite
from keras_convnets.graph.rewrite import in_turn
from keras_convnets.layers import CondConv2D
from keras_convnets.layers.fast import CONV2D
from keras_convnets.quiet import silenced_stderr

INSTALL = 'pip install "keras-convnets[onnx]"'
OPSETS = range(13, 19)
MOST_BYTES = 2**31 - 2**24  # protobuf's limit, and room for the graph
BATCHES = (1, 3)
TOLERANCE = 1e-5


def export_onnx(model: keras.Model, path: str | os.PathLike, opset: int = 18) -> Path:
    """Writes a model as an ONNX file: any batch size, one fixed image size, channels last.

    Branches are merged and BatchNorm is folded first (`graph.reparameterize`,
    `graph.fold_batchnorm`). tf2onnx translates the TensorFlow graph; on the jax and torch backends
    a child process does that with a saved copy. The file is run in onnxruntime on batches of 1 and
    3 and compared with the model before it gets its name. Its input is called `image`, its outputs
    `output_0`, `output_1` and so on.

    Args:
        model: a Functional or Sequential model with one image input `(batch, height, width,
            channels)` of known size, computing in float32.
        path: the file to write; one that exists is replaced.
        opset: version of the operator set, 13 to 18.

    Returns:
        The path.

    Raises:
        ValueError: for a model that cannot be exported, another opset, a path that cannot be
            written, operators that ONNX lacks, or an export that differs from the model by more
            than 1e-5 of the largest output. There is no file then, and an older one is unchanged.
        ImportError: if tensorflow, onnx, onnxruntime or tf2onnx is not installed.
    """
    check_model(model, "an .onnx")
    if opset not in OPSETS:
        raise ValueError(f"opset={opset!r} must be a number from {OPSETS[0]} to {OPSETS[-1]}.")
    size = sum(math.prod(variable.shape) for variable in model.variables) * 4
    if size > MOST_BYTES:
        raise ValueError(
            f"model={model.name!r} has {size / 1e9:.1f} GB of weights, but one ONNX file holds at "
            "most 2 GB; choose a smaller variant."
        )
    for layer in model._flatten_layers():
        if isinstance(layer, CondConv2D) and layer.groups == layer.filters > 1:
            raise ValueError(
                f"{layer.name!r} is a depthwise CondConv2D, a convolution whose groups are all "
                "examples' channels: ONNX has none of a number that is not known. Take fewer "
                "groups, or export with export_litert."
            )
    check_packages("ONNX", INSTALL, "tensorflow", "onnx", "onnxruntime", "tf2onnx")
    return write_checked(
        path,
        lambda: on_tensorflow(convert, model, opset=opset),
        lambda part: _check_outputs(model, part),
    )


def convert(model: keras.Model, opset: int) -> bytes:
    """The content of the file. For the tensorflow backend; see `on_tensorflow`."""
    fused = in_turn(model, reparameterize, fold_batchnorm, in_the_open)

    def function(image):
        outputs = keras.tree.flatten(fused(image, training=False))
        return {f"output_{i}": output for i, output in enumerate(outputs)}

    proto = translate(function, model.inputs[0].shape[1:], opset)
    lacking = {node.op_type for node in lacking_nodes(proto)}
    if lacking:
        raise ValueError(
            f"model={model.name!r} does not convert: ONNX lacks {', '.join(sorted(lacking))}; "
            "express it by other operators."
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto.SerializeToString()


def translate(function: Callable, shape: tuple[int, ...], opset: int):
    """An ONNX `ModelProto` of a TensorFlow function of images of a shape, in any number."""
    import tensorflow as tf
    import tf2onnx

    from keras_convnets.ops._depthwise_tensorflow import maps_padded

    spec = tf.TensorSpec((None, *shape), "float32", name="image")
    function = tf.function(function, input_signature=[spec], autograph=False)
    with silenced_stderr(), maps_padded():
        proto, _ = tf2onnx.convert.from_function(
            function, [spec], opset=opset, custom_op_handlers={"Erfc": (_erfc, [])}
        )
    return proto


def lacking_nodes(proto) -> list:
    """Nodes with an operator that ONNX lacks."""
    import onnx

    return [node for node in proto.graph.node if not onnx.defs.has(node.op_type)]


def in_the_open(model: keras.Model) -> keras.Model:
    """The model with its grouped convolutions in the open, and Fourier transforms as products.

    Keras hides the former in functions for XLA, which tf2onnx cannot look into; of the latter ONNX
    has none that tf2onnx makes.
    """
    operations = [*model._flatten_layers(), *model.operations]
    if not any(getattr(o, "groups", 1) != 1 or hasattr(o, "by_products") for o in operations):
        return model
    return rewrite(model, _in_the_open)


def _in_the_open(operation, node):
    if hasattr(operation, "by_products"):
        return operation.by_products(node.input_tensors[0].shape)
    if type(operation) not in CONV2D or operation.groups == 1:
        return None
    layer = _GroupedConv2D.from_config(operation.get_config())
    layer.build(node.input_tensors[0].shape)
    layer.set_weights(operation.get_weights())
    return layer


class _GroupedConv2D(keras.layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        import tensorflow as tf

        return tf.nn.convolution(
            inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate
        )


def _erfc(graph, node, name, arguments):
    """erfc(x) = 1 - erf(x), for the exact GELU: no version of ONNX has Erfc, all have Erf."""
    (x,), (y,) = node.input, node.output
    dtype, shape = graph.get_dtype(y), graph.get_shape(y)
    graph.remove_node(node.name)
    erf = graph.make_node("Erf", [x], dtypes=[dtype], shapes=[shape])
    one = graph.make_const(f"{name}_one", np.array(1, "float32"))
    graph.make_node(
        "Sub", [one.output[0], erf.output[0]], outputs=[y], dtypes=[dtype], shapes=[shape]
    )


def _check_outputs(model, path):
    """Raises ValueError unless file and model agree on normal noise, in batches of two sizes."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise ValueError(
            f"model={model.name!r}: onnxruntime refuses the file: {error}; nothing was written."
        ) from None
    shape = (max(BATCHES), *model.inputs[0].shape[1:])
    images = np.random.default_rng(0).standard_normal(shape, "float32")
    expected = outputs_of(model, images)
    for batch in BATCHES:
        given = session.run(None, {"image": images[:batch]})
        for i, (want, have) in enumerate(zip(expected, given, strict=True)):
            problem = difference(want[:batch], have)
            if problem:
                raise ValueError(
                    f"model={model.name!r} and its ONNX form disagree in output {i} of a batch of "
                    f"{batch}: {problem}; nothing was written."
                )


def difference(want: np.ndarray, have: np.ndarray) -> str | None:
    """What is wrong with an output, or `None`."""
    if want.shape != have.shape:
        return f"the shape is {have.shape}, not {want.shape}"
    if not np.isfinite(want).all():
        return "the model itself gives NaN or infinite values"
    relative = np.abs(want - have).max() / max(np.abs(want).max(), 1e-30)
    return None if relative <= TOLERANCE else f"{relative:.1e} of the largest value"
