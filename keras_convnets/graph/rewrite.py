"""Rebuilding a model's graph operation by operation: what every pass is made of."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.utils import module_utils

from keras_convnets.layers.block import opening


def is_compound(operation: keras.Operation) -> bool:
    """Whether an operation is made of layers: a block of ours or a user's, or a nested model."""
    return (
        isinstance(operation, keras.Layer)
        and bool(operation._layers)
        and (isinstance(operation, keras.Model) or not _is_from_keras(operation))
    )


def _is_from_keras(operation):
    return type(operation).__module__.partition(".")[0] == "keras"


def graph_nodes(graph: keras.Model) -> list:
    """The calls of a graph in the order of execution, its inputs left out.

    A node has `operation`, `input_tensors`, `outputs` and `arguments` (`.args`, `.kwargs`).
    """
    by_depth = sorted(graph._nodes_by_depth.items(), reverse=True)
    return [node for _, nodes in by_depth for node in nodes if not node.is_input]


def consumers_of(nodes: list) -> dict[int, list]:
    """The nodes that read a tensor, by the tensor's id; once for each time they do."""
    consumers = {}
    for node in nodes:
        for x in node.input_tensors:
            consumers.setdefault(id(x), []).append(node)
    return consumers


_given = []  # copies that are of no more use, the last one to the pass that runs


def in_turn(model: keras.Model, *passes: Callable[[keras.Model], keras.Model]) -> keras.Model:
    """Passes one after the other. Each but the first takes the layers that it keeps from the copy
    that the one before made, which nobody else has, instead of copying them and their weights."""
    first, *others = passes
    model = first(model)
    for step in others:
        _given.append(model)
        try:
            model = step(model)
        finally:
            _given.pop()
        gc.collect()  # models are cycles
    return model


def _is_given(model):
    return bool(_given) and _given[-1] is model


def rewrite(
    model: keras.Model, replace: Callable[[keras.Operation, object], Callable | None]
) -> keras.Model:
    """A flat copy of a model with some of its operations replaced; the model stays as it is.

    Args:
        model: a Functional or Sequential model, flat or not.
        replace: function `(operation, node)` that is asked once for each call of a leaf layer or of
            an operation of `keras.ops`, in the order of execution. It returns `None` to keep the
            operation, or what stands for it at this node: a function, or a layer without sublayers,
            that takes the same arguments and gives tensors of the same shape. Inside, layers are
            named by their path, `operation.name`. For a layer that is called at several nodes
            it may return the same new layer each time. See `graph_nodes` for what a node has.

    Raises:
        ValueError: as `flatten`.
    """
    with leaf_graph(model) as graph:
        return rebuild(graph, replace)


def rebuild(
    graph: keras.Model,
    replace: Callable[[keras.Operation, object], Callable | None],
    follow: Callable = lambda tensor, new: new,
) -> keras.Model:
    """`rewrite` for what `leaf_graph` gives.

    `follow` is a function of a tensor of the graph, be it an input or the output of an operation,
    and of the one that stands for it: what the rest of the new graph is to take instead.
    """
    copies = {}
    given = _is_given(graph)

    def choose(node):
        operation = node.operation
        replacement = replace(operation, node)
        if replacement is not None:
            return replacement
        if given:
            return operation
        if operation in copies:
            return copies[operation]
        copies[operation] = type(operation).from_config(operation.get_config())
        return functools.partial(_build_like, operation, copies[operation])

    return _rerun(graph, choose, follow)


def _build_like(operation, copy, *args, **kwargs):
    """Calls a copy for the first time, whose weights then are the operation's."""
    with without_allocation():
        outputs = copy(*args, **kwargs)
    for target, source in zip(getattr(copy, "weights", ()), getattr(operation, "weights", ())):
        # A copy: JAX would share the buffer.
        target._initialize(target._convert_to_tensor(np.array(source), target.dtype))
        target._initializer = None
    return outputs


@contextlib.contextmanager
def without_allocation() -> Iterator[None]:
    """Layers built inside have shapes and names but no memory: for counting, for listing keys, and
    for variables that get their values from elsewhere."""
    pending = list(global_state.get_global_attribute("uninitialized_variables", []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", pending)


@contextlib.contextmanager
def tensorflow_left_out() -> Iterator[None]:
    """Layers inside are copied without TensorFlow, unless somebody uses it already. Keras imports
    it, which takes seconds, to ask whether an argument of a layer is one of its types."""
    unknown = module_utils.tensorflow._available is None and "tensorflow" not in sys.modules
    if unknown:
        module_utils.tensorflow._available = False
    try:
        yield
    finally:
        if unknown:
            module_utils.tensorflow._available = None


def _rerun(graph, choose, follow=lambda tensor, new: new, input_shape=None):
    """The graph on new inputs, each node computed by `choose(node)`."""

    def like(x):
        shape = x.shape if input_shape is None else (x.shape[0], *input_shape)
        return keras.Input(batch_shape=shape, dtype=x.dtype, name=x.name)

    inputs = keras.tree.map_structure(like, graph.input)
    tensors = {
        id(old): follow(old, new) for old, new in zip(graph.inputs, keras.tree.flatten(inputs))
    }
    nodes = graph_nodes(graph)
    if _is_given(graph):  # else its layers would keep it, and all that is replaced, in memory
        for operation in graph.operations:
            del operation._inbound_nodes[:], operation._outbound_nodes[:]
    for node in nodes:
        args, kwargs = node.arguments.fill_in(tensors)
        outputs = choose(node)(*args, **kwargs)
        for old, new in zip(node.outputs, keras.tree.flatten(outputs)):
            tensors[id(old)] = follow(old, new)
    outputs = keras.tree.map_structure(lambda x: tensors[id(x)], graph.output)
    _name_apart(keras.tree.flatten(outputs))
    return keras.Model(inputs, outputs, name=graph.name)


def _name_apart(outputs):
    """Gives operations names that the layers do not have: Keras refuses a graph with namesakes."""
    histories = [x._keras_history for x in outputs]
    pending = [history.operation._inbound_nodes[history.node_index] for history in histories]
    seen = {}
    while pending:
        node = pending.pop()
        if node not in seen:
            seen[node] = node.operation
            pending += node.parent_nodes
    operations = dict.fromkeys(seen.values())
    taken = set()
    for operation in sorted(operations, key=lambda op: not isinstance(op, keras.Layer)):
        name, count = operation.name, 1
        while operation.name in taken:
            count += 1
            operation.name = f"{name}_{count}"
        taken.add(operation.name)


def open_compound(operation: keras.Operation) -> Callable | None:
    """What stands for an operation in the flat graph: a compound layer's `call`, which leads to the
    layers in it; `None` for a leaf."""
    return operation.call if is_compound(operation) else None


@contextlib.contextmanager
def leaf_graph(
    model: keras.Model,
    expand: Callable[[keras.Operation], Callable | None] = open_compound,
    input_shape: tuple[int | None, ...] | None = None,
) -> Iterator[keras.Model]:
    """A graph of the model's own leaf layers, named by their path, unique in the model.

    It is for looking at, and for `rebuild`, inside the context only: afterwards the model's layers
    have their names again, and know nothing of the graph.

    Args:
        model: as in `flatten`.
        expand: function of an operation: what to put in its place, or `None` to keep it. It is
            asked once, and about what it has put there. A new layer takes the path as its name.
        input_shape: of another image, without the batch; default: that of the model.
    """
    inputs, outputs = _ends(model)
    if _is_given(model) and input_shape is None and not any(map(expand, model.operations)):
        with tensorflow_left_out():
            yield model
        return
    _check_variables(model)
    with _borrowed(model) as name_sublayers, tensorflow_left_out():

        @functools.cache  # of a layer that is called twice
        def stand_in(operation):
            new = expand(operation)
            if isinstance(new, keras.Layer):
                new.name = operation.name
                name_sublayers(new, f"{new.name}_")
            return new

        graph = keras.Model(inputs, outputs, name=model.name)
        while True:
            expansions = {op: new for op in graph.operations if (new := stand_in(op)) is not None}
            if not expansions and input_shape is None:
                break
            with opening(stand_in):  # the blocks in them too, which saves a copy for each level
                graph = _rerun(
                    graph,
                    lambda node, new=expansions: new.get(node.operation, node.operation),
                    input_shape=input_shape,
                )
            input_shape = None
        yield graph


def _ends(model):
    """Input and output of a model, in the structure the user gave them."""
    if isinstance(model, keras.Sequential) and model.built:
        return model.inputs[0], model.outputs[0]
    if not hasattr(model, "inputs") or not hasattr(model, "operations"):
        raise ValueError(
            f"model {model.name!r} has no symbolic graph: give a Functional or a built Sequential "
            "model, not a subclassed one."
        )
    return model.input, model.output


def _check_variables(model):
    for layer in model._flatten_layers():
        if is_compound(layer) and (layer._trainable_variables or layer._non_trainable_variables):
            own = [v.path for v in layer._trainable_variables + layer._non_trainable_variables]
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) has sublayers and variables of its "
                f"own, {own}: move them to a leaf layer (a layer without sublayers)."
            )


@contextlib.contextmanager
def _borrowed(model):
    """Within, the name of each layer is its path; at the end, names and calls are as before.

    Yields the function that names the sublayers of a layer, given what to put before them.
    """
    taken = Counter()

    def name_sublayers(layer, prefix):
        for sublayer in layer._layers:
            name = prefix + sublayer.name
            taken[name] += 1
            sublayer.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
            if is_compound(sublayer):
                name_sublayers(sublayer, "" if isinstance(sublayer, keras.Model) else f"{name}_")

    operations = {*model._flatten_layers()}
    for layer in model._flatten_layers():
        operations.update(getattr(layer, "operations", ()))
    names = [(operation, operation.name) for operation in operations]
    lists = [calls for op in operations for calls in (op._inbound_nodes, op._outbound_nodes)]
    lengths = [len(calls) for calls in lists]
    name_sublayers(model, "")
    try:
        yield name_sublayers
    finally:
        for operation, name in names:
            operation.name = name
        for calls, length in zip(lists, lengths):
            del calls[length:]
