"""The flat form of a model: one Functional graph of leaf layers and `keras.ops`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import keras
import numpy as np


def is_compound(operation: keras.Operation) -> bool:
    """Whether an operation is made of layers: a block of ours or a user's, or a nested model."""
    return (
        isinstance(operation, keras.Layer)
        and bool(operation._layers)
        and (isinstance(operation, keras.Model) or not _is_from_keras(operation))
    )


def _is_from_keras(operation):
    return type(operation).__module__.partition(".")[0] == "keras"


def inline(model: keras.Model) -> keras.Model:
    """`flatten`, but on the model's own leaf layers: for looking at, not for changing or saving."""
    while any(is_compound(operation) for operation in model.operations):
        model = keras.models.clone_model(
            model,
            clone_function=lambda layer: layer,
            call_function=lambda operation, *args, **kwargs: (
                operation.call if is_compound(operation) else operation
            )(*args, **kwargs),
        )
    return model


def flatten(model: keras.Model) -> keras.Model:
    """Rewrites a model as one Functional graph of leaf layers and `keras.ops`, outputs bit-equal.

    Leaf layers are named by their path, `stage0_block1/mlp/fc1` becoming `stage0_block1_mlp_fc1`.
    The result has its own copy of the weights: nothing done to it changes the model.

    Args:
        model: a Functional or Sequential model, of this package or a user's own. Its layers may be
            compound as long as their `call` works on symbolic tensors and variables live in leaf
            layers only.

    Raises:
        ValueError: if the model has no symbolic graph, or a compound layer owns variables itself;
            names the layer.
    """
    check_flattenable(model)
    with path_names(model):
        inlined = inline(keras.Model(model.input, model.output, name=model.name))
        flat = keras.models.clone_model(inlined)
        sources = {layer.name: layer for layer in inlined.layers}
        # Inputs have no weights, and may have another name in the clone.
        for layer in filter(lambda layer: layer.weights, flat.layers):
            for target, source in zip(layer.weights, sources[layer.name].weights):
                target.assign(np.array(source))  # a copy: JAX would share the buffer
    return flat


def check_flattenable(model: keras.Model) -> None:
    if not hasattr(model, "inputs") or not hasattr(model, "operations"):
        raise ValueError(
            f"model {model.name!r} has no symbolic graph: give a Functional or a built Sequential "
            "model, not a subclassed one."
        )
    for layer in model._flatten_layers():
        if is_compound(layer) and (layer._trainable_variables or layer._non_trainable_variables):
            own = [v.path for v in layer._trainable_variables + layer._non_trainable_variables]
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) has sublayers and variables of its "
                f"own, {own}: move them to a leaf layer (a layer without sublayers)."
            )


@contextlib.contextmanager
def path_names(model: keras.Model) -> Iterator[None]:
    """Within, the name of each layer is its path, unique in the model."""
    saved = []
    taken = Counter()

    def rename(layer, prefix):
        for sublayer in layer._layers:
            name = prefix + sublayer.name
            taken[name] += 1
            saved.append((sublayer, sublayer.name))
            sublayer.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
            if is_compound(sublayer):
                rename(sublayer, "" if isinstance(sublayer, keras.Model) else f"{name}_")

    rename(model, "")
    try:
        yield
    finally:
        for layer, name in reversed(saved):
            layer.name = name
