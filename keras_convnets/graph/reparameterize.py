"""Blocks with parallel branches as the one layer that computes the same at inference."""

from __future__ import annotations

import keras

from keras_convnets.graph.rewrite import leaf_graph, open_compound, rebuild


def reparameterize(model: keras.Model) -> keras.Model:
    """`flatten`, but every layer that has a method `fused` is replaced by what that returns.

    `fused(self) -> keras.Layer` gives a new built layer, a leaf or a small `Block` of leaves, that
    computes at inference what the layer does with its present weights. The layer takes the path of
    the one it replaces as its name. Outputs differ from the model's by rounding only.

    Args:
        model: as in `flatten`; it stays as it is, and the result has weights of its own.

    Raises:
        ValueError: as `flatten`, and if `fused` returns a layer that is not built.
    """
    with leaf_graph(model, _fuse_or_open) as graph:
        return rebuild(graph, lambda operation, node: None)


def _fuse_or_open(operation):
    # A method of the class: some blocks have a sublayer of that name.
    if not hasattr(type(operation), "fused"):
        return open_compound(operation)
    layer = operation.fused()
    if not layer.built:
        raise ValueError(
            f"{type(operation).__name__}.fused() returned a layer that is not built, for "
            f"{operation.name!r}: call its build(input_shape), then assign its weights."
        )
    return layer
