"""From a lowered model to a float .tflite file, by TensorFlow's converter."""

from __future__ import annotations

import copy
import functools
import math
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import keras
import numpy as np

from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.graph.rewrite import graph_nodes
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.fast import CONV2D, DENSE
from keras_convnets.quiet import silenced_stderr

# Of more parameters than this, a SavedModel has variables and a file gets its kernels last.
FEW_PARAMETERS = 5_000_000
# What stands for each number of a kernel of at least so many until then, and by how much it grows
# from one to the next of equal shape that read the same map.
PLACEHOLDER, APART = 1.5, 0.125
LARGE_KERNEL = 4096
# The axes of kernels in a file by those of Keras; depthwise ones are `(height, width, channels, 1)`
# there, and `(1, height, width, channels)` in the file.
AXES = {"CONV_2D": (3, 0, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "FULLY_CONNECTED": (1, 0)}


class Conversion:
    """A model on its way to .tflite files; what those share is made once.

    Args:
        lowered: what `graph.lower` gives, on the tensorflow backend.
        normalise: what a file does with its input first.
        name: of the model, for errors.
        folder: an empty one, for a SavedModel.
    """

    def __init__(
        self, lowered: keras.Model, normalise: Callable | None, name: str, folder: str
    ) -> None:
        self.lowered = lowered
        self.normalise = normalise
        self.name = name
        self.folder = folder

    def converted(self, **settings) -> bytes:
        """What the converter makes of it with these attributes.

        Raises:
            ValueError: for operators that LiteRT lacks.
        """
        converter = converter_of(self._saved)
        for name, value in settings.items():
            setattr(converter, name, value)
        return run_converter(converter, self.name)

    @functools.cached_property
    def _saved(self):
        save_static(self.lowered, self.normalise, self.folder)
        return self.folder

    @functools.cached_property
    def float_content(self) -> bytes:
        """The file in float32; errors as in `converted`."""
        if self.lowered.count_params() > FEW_PARAMETERS:
            content = _with_kernels_last(self.lowered, self.normalise, self.name)
            if content is not None:
                return content
        return self.converted()


def save_static(lowered: keras.Model, normalise: Callable | None, folder: str) -> None:
    """A SavedModel of static shape: the route that keeps the graph clean, and that takes a third of
    the memory of a frozen function."""
    import tensorflow as tf

    if lowered.count_params() <= FEW_PARAMETERS:
        _save(_with_constants(lowered, {}), lowered, normalise, folder)
    else:
        module = tf.Module()
        module.variables_of_layers = [variable.value for variable in lowered.variables]
        compute = functools.partial(lowered, training=False)
        _save(compute, lowered, normalise, folder, module)


def _save(compute, lowered, normalise, folder, module=None):
    import tensorflow as tf

    from keras_convnets.ops._depthwise_tensorflow import maps_padded

    def serve(image):
        outputs = compute(normalise(image) if normalise else image)
        return {f"output{i}": y for i, y in enumerate(keras.tree.flatten(outputs))}

    spec = tf.TensorSpec((1, *lowered.inputs[0].shape[1:]), "float32", name="image")
    # As an attribute of the module it would be traced and saved once more.
    function = tf.function(serve, autograph=False, input_signature=[spec])
    with maps_padded():
        signature = function.get_concrete_function()
    # The gradients of operators such as SiLU are of no use in a file, and take a tenth of the time.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with silenced_stderr():
        tf.saved_model.save(module or tf.Module(), folder, signature, options)


def _with_constants(lowered, placeholders: Mapping[str, float]):
    """The model as a function with its weights inside, which converts in half the time; but they
    are held several times over. `placeholders`: numbers that stand for variables, by their path."""
    import tensorflow as tf

    kinds = (lowered.trainable_variables, lowered.non_trainable_variables)
    weights = [
        [
            placeholders.get(variable.path) or keras.ops.convert_to_numpy(variable)
            for variable in kind
        ]
        for kind in kinds
    ]

    def compute(x):
        constants = [
            [tf.constant(value, v.dtype, v.shape) for v, value in zip(kind, values)]
            for kind, values in zip(kinds, weights)
        ]
        return lowered.stateless_call(*constants, x, training=False)[0]

    return compute


def _with_kernels_last(lowered, normalise, name):
    """The content of a file that was converted without its large kernels; `None` where one is not
    found again.

    The converter holds what a file has six to eight times over. Kernels of one number and equal
    shapes are one constant to it: memory for the others is not needed until they are filled in.
    """
    placeholders = _placeholders(lowered)
    if not placeholders:
        return None
    with tempfile.TemporaryDirectory() as folder:
        numbers = {layer.kernel.path: number for layer, number in placeholders.items()}
        _save(_with_constants(lowered, numbers), lowered, normalise, folder)
        content = run_converter(converter_of(folder), name)
    return _filled(content, {layer.name: layer.kernel for layer in placeholders})


def _placeholders(lowered):
    """{convolution or dense layer with a large kernel, called once: what stands for its numbers}

    The converter makes one of two products of a map with equal kernels, so theirs are not equal.
    """
    nodes = graph_nodes(lowered)
    calls = Counter(node.operation for node in nodes)
    beside, numbers = Counter(), {}
    for node in nodes:
        layer = node.operation
        if type(layer) in (*CONV2D, *DENSE, DepthwiseConv2D) and calls[layer] == 1:
            shape = tuple(layer.kernel.shape)
            if math.prod(shape) >= LARGE_KERNEL:
                key = (id(node.input_tensors[0]), shape)
                numbers[layer] = PLACEHOLDER + APART * beside[key]
                beside[key] += 1
    return numbers


def _filled(content, kernels: Mapping[str, keras.Variable]):
    """The file with its kernels, by the names of the layers; `None` if they do not fit."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    class Transposed(schema.BufferT):
        """A kernel, of which no other copy is made than that in the file."""

        def __init__(self, kernel, axes):
            super().__init__()
            self.kernel, self.axes = kernel, axes

        def Pack(self, builder):
            value = np.transpose(keras.ops.convert_to_numpy(self.kernel), self.axes)
            return schema.BufferT(np.ravel(value).view("uint8")).Pack(builder)

    model = flatbuffer_utils.convert_bytearray_to_object(content)
    graph, file = model.subgraphs[0], LiteRTFile(content)
    products = {
        position: step
        for position, step in enumerate(file.steps)
        if step.kind in AXES and _is_placeholder(model, graph.tensors[step.inputs[1]])
    }
    named = {position: file.tensors[step.outputs[0]].name for position, step in products.items()}
    owners = _owners(named, kernels)
    if owners is None:
        return None
    emptied, taken = set(), set()
    for position, step in products.items():
        layer, index = owners[position], step.inputs[1]
        tensor = graph.tensors[index]
        kernel, axes = kernels[layer], AXES[step.kind]
        if [kernel.shape[axis] for axis in axes] != list(tensor.shape):
            return None
        if index in taken:  # by another product, for kernels of equal shape are one
            tensor, index = copy.copy(tensor), len(graph.tensors)
            graph.tensors.append(tensor)
            operator = graph.operators[position]
            operator.inputs = [operator.inputs[0], index, *operator.inputs[2:]]
        else:
            emptied.add(tensor.buffer)
        taken.add(index)
        tensor.name, tensor.buffer = f"{layer}/kernel".encode(), len(model.buffers)
        model.buffers.append(Transposed(kernel, axes))
    for index in emptied:
        model.buffers[index].data = None
    # With room for all from the start: a builder that grows holds everything twice.
    builder = flatbuffers.Builder(
        len(content) + sum(4 * math.prod(k.shape) + 64 for k in kernels.values())
    )
    builder.Finish(model.Pack(builder), b"TFL3")
    del model, graph
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


def _is_placeholder(model, tensor):
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return False
    values = data.view("float32")
    first = values[0]
    return first >= PLACEHOLDER and first % APART == 0 and bool((values == first).all())


def _owners(names: Mapping[int, str], layers: Collection[str]) -> dict[int, str] | None:
    """Which layer each of some operators is of, by the operators' names; `None` if some operator or
    layer is left, or if it is not clear: names have numbers after them, as layers may have too."""
    waiting = {}
    for layer in layers:
        pattern = re.compile(rf"(.*;)?{re.escape(layer)}(_\d+)?/.*")
        waiting[layer] = {position for position, name in names.items() if pattern.match(name)}
    owners = {}
    while waiting:
        sure = {layer: left.pop() for layer, left in waiting.items() if len(left) == 1}
        if not sure or len(set(sure.values())) < len(sure):
            return None
        owners.update((position, layer) for layer, position in sure.items())
        waiting = {k: left - owners.keys() for k, left in waiting.items() if k not in sure}
    return owners if len(owners) == len(names) else None


def converter_of(folder):
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_saved_model(folder)


def run_converter(converter, name):
    from tensorflow.lite.python.convert_phase import ConverterError

    try:
        with silenced_stderr(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")  # it measures them
            return _in_order(converter.convert())
    except ConverterError as error:
        lacking = re.findall(r"^(?:Custom|Flex) ops: (.+)$", str(error), re.MULTILINE)
        reason = f"LiteRT lacks {', '.join(lacking)}" if lacking else str(error).split("\n")[0]
        raise ValueError(
            f"model={name!r} does not convert: {reason}; express it by other operators."
        ) from None


def _in_order(content):
    """The file with its outputs in the model's order, which the converter does not keep."""
    from ai_edge_litert.tools import flatbuffer_utils

    if len(LiteRTFile(content).outputs) == 1:
        return content
    model = flatbuffer_utils.convert_bytearray_to_object(content)
    numbers = {int(y.name.removeprefix(b"output")): y for y in model.signatureDefs[0].outputs}
    model.subgraphs[0].outputs = [numbers[i].tensorIndex for i in range(len(numbers))]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
