"""What a model can become on devices, told from its layers alone."""

from __future__ import annotations

import keras

from keras_convnets.graph.rewrite import graph_nodes, leaf_graph

# What LiteRT has no fast integer form of; see deploy/recipes.py.
FLOAT_KINDS = {
    "AdaptiveFrequencyFilter2D",
    "BitConv2D",
    "BitDense",
    "CondConv2D",
    "Divide",
    "Einsum",
    "EvoNorm2D",
    "FFTConv1D",
    "FFTConv2D",
    "FilterSpectrum",
    "GlobalFilter2D",
    "GroupNormalization",
    "IRFFT2",
    "LayerNormalization",
    "LongConv1D",
    "Matmul",
    "PReLU",
    "RFFT2",
    "Rsqrt",
    "SGConv1D",
    "SoftPooling2D",
    "Sqrt",
    "Square",
    "Variance",
    "XNORConv2D",
}
# What TensorFlow Lite Micro has no kernel of.
NOT_MICRO_KINDS = {"Gelu", "gelu"}


def targets(model: keras.Model) -> list[str]:
    """The forms that suit a model, of `"float"`, `"int8"` (throughout), `"mixed int8"` (products
    and what saves time between them), `"mcu"` and `"onnx"`.

    Whether a microcontroller has the memory is another matter, see `deploy.export_micro`.

    Args:
        model: as in `graph.flatten`.
    """
    with leaf_graph(model) as graph:
        kinds = {kind for node in graph_nodes(graph) for kind in _kinds(node.operation)}
    if kinds & FLOAT_KINDS:
        return ["float", "mixed int8", "onnx"]
    return ["float", "int8", *([] if kinds & NOT_MICRO_KINDS else ["mcu"]), "onnx"]


def _kinds(operation):
    yield type(operation).__name__
    activation = getattr(operation, "activation", None)
    if activation is not None:
        yield getattr(activation, "__name__", type(activation).__name__)
