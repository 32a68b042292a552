"""What PyTorch runs of a model for inference on a CPU: its own operations alone, by oneDNN.

The model's operations are recorded for images of one size. What depends on weights only is computed
once; convolutions and products with weights become oneDNN's, which add biases and residual branches
and apply activations while they write their results, on weights in the order that they like best.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.shape_prop import ShapeProp
from torch.overrides import TorchFunctionMode

from keras_convnets.graph._fuse_attention_torch import use_attention
from keras_convnets.graph._recorded import is_call, shape_of

aten, onednn = torch.ops.aten, torch.ops.mkldnn
PERMUTE, RESHAPE = aten.permute.default, aten.reshape.default
CHANNELS_LAST = [0, 2, 3, 1]
ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.silu.default: "swish",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
}
NOTHING = ("none", [], "")
KEPT = 2  # `predict` has a last batch of another size; each record has weights of its own
TOLERANCE = 1e-3  # of the largest output: it is about operations that were not recorded


class Recorder:
    """A function of tensors, and what was recorded of it for the sizes that come again.

    Args:
        call: takes tensors, gives a structure of tensors.
        weights: what it uses; when one of them changes, records are made anew.
    """

    def __init__(self, call: Callable, weights: list[torch.Tensor]):
        self.call, self.weights = call, weights
        self.versions, self.records = None, {}

    def __call__(self, *inputs: torch.Tensor):
        # Weights that were made in inference mode do not tell when they change.
        if not _can_be_recorded(inputs) or any(weight.is_inference() for weight in self.weights):
            return self.call(*inputs)
        versions = [weight._version for weight in self.weights]
        if versions != self.versions:
            self.versions, self.records = versions, {}
        sizes = tuple(x.shape for x in inputs)
        if sizes not in self.records:  # and may not come again: recording takes half a second
            while len(self.records) >= KEPT:
                del self.records[next(iter(self.records))]
            self.records[sizes] = None
            return self.call(*inputs)
        if self.records[sizes] is None:
            self.records[sizes] = record(self.call, sizes) or self.call
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.has(sizes)):
            return self.records[sizes](*inputs)

    def has(self, sizes: tuple[tuple[int, ...], ...]) -> bool:
        """Whether there is a record for tensors of these sizes."""
        return isinstance(self.records.get(sizes), torch.fx.GraphModule)


def _can_be_recorded(inputs):
    """Values in float32 on a CPU, of which no gradient is wanted."""
    with_gradients = torch.is_grad_enabled()
    is_traced = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return not is_traced and all(
        type(x) is torch.Tensor
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not (with_gradients and x.requires_grad)
        for x in inputs
    )


def record(call: Callable, sizes: tuple[torch.Size, ...]) -> Callable | None:
    """A function that gives what `call` does for float32 tensors of these sizes on a CPU, with the
    present weights and without gradients.

    Returns:
        `None` where that cannot be recorded: operations that are not PyTorch's, or in place.
    """
    random = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(size, generator=random) for size in sizes] for _ in range(2))
    with torch.inference_mode(False), torch.no_grad():
        try:
            with _NoQuestions():
                module = make_fx(call)(*first)
        except RuntimeError:  # a value was asked for, to decide what to do
            return None
        calls = [node for node in module.graph.nodes if node.op == "call_function"]
        if any(node.target._schema.is_mutable for node in calls if hasattr(node.target, "_schema")):
            return None
        _compute_constants(module)
        _free_layouts(module.graph)
        ShapeProp(module).propagate(*first)
        if use_attention(module.graph):
            ShapeProp(module).propagate(*first)
        if torch.backends.mkldnn.is_available():
            _use_onednn(module)
        _drop_pairs_of_permutations(module.graph)
        _forget_unused(module)
        module.recompile()
        # Other values than those that were there when it was recorded.
        return module if _are_close(module(*second), call(*second)) else None


class _NoQuestions(TorchFunctionMode):
    """PyTorch's `one_hot` looks at the values before it begins; here it compares only."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.one_hot:
            indices, classes = args
            return (indices[..., None] == torch.arange(classes, device=indices.device)).long()
        return function(*args, **(kwargs or {}))


def _are_close(found, expected):
    pairs = zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True)
    return all((a - b).abs().max() <= TOLERANCE * b.abs().max() for a, b in pairs)


def _forget_unused(module):
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_buffers(), *module.named_parameters()]:
        if name not in used:
            delattr(module, name)


def _compute_constants(module):
    """Replaces what depends on weights only by its value; constants come first."""
    graph, values = module.graph, {}
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(module, node.target)
        elif node.op == "call_function" and all(x in values for x in node.all_input_nodes):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        used = any(user not in values for user in node.users)
        if used and node.op == "call_function" and isinstance(value, torch.Tensor):
            layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
            value = value.contiguous(memory_format=layout)
            node.replace_all_uses_with(_constant(module, node, value))
    graph.eliminate_dead_code()
    first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        first.prepend(node)


def _free_layouts(graph):
    """Shapes are changed without a copy wherever the new operations allow it."""
    for node in graph.nodes:
        if is_call(node, aten.view.default, aten._unsafe_view.default):
            node.target = RESHAPE
    for node in list(graph.nodes):
        if is_call(node, aten.clone.default) and all(is_call(user, RESHAPE) for user in node.users):
            _replace(node, node.args[0])


def _use_onednn(module):
    for node in list(module.graph.nodes):
        if is_call(node, aten.convolution.default):
            _use_convolution(module, node)
        elif is_call(node, aten.mm.default, aten.addmm.default):
            _use_product(module, node)
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        if is_call(node, aten.add.Tensor):
            _add_while_writing(module.graph, node)
    module.graph.eliminate_dead_code()


def _use_convolution(module, node):
    x, kernel, bias, strides, padding, dilation, transposed, _, groups = node.args
    is_plain = not transposed and len(shape_of(x)) == 4 and _is_float(x)
    if not is_plain or not _are_constants(kernel, bias):
        return
    geometry = padding, strides, dilation, groups
    addition = None
    if bias is None:
        bias, addition = _bias_after(module, node, shape_of(node)[1], CHANNELS_LAST)
    packed = onednn._reorder_convolution_weight(
        _value(module, kernel), *geometry, list(shape_of(x))
    )
    packed = _constant(module, node, packed)
    activation, done = _activation_after(addition or node)
    arguments = (x, packed, bias, *geometry, *activation)
    _put(module.graph, node, onednn._convolution_pointwise.default, arguments, addition, done)


def _use_product(module, node):
    bias, x, kernel = node.args if len(node.args) == 3 else (None, *node.args)
    if not _are_constants(kernel, bias) or not _is_float(x):
        return
    addition = None
    if bias is None:
        bias, addition = _bias_after(module, node, shape_of(node)[1])
    packed = onednn._reorder_linear_weight(_value(module, kernel).t().contiguous(), shape_of(x)[0])
    packed = _constant(module, node, packed)
    activation, done = _activation_after(addition or node)
    arguments = (x, packed, bias, *activation)
    _put(module.graph, node, onednn._linear_pointwise.default, arguments, addition, done)


def _add_while_writing(graph, node):
    """One of the two terms may be a convolution or a product that does nothing else."""
    are_two = len(set(node.args)) == 2 and not node.kwargs
    if not are_two or not all(isinstance(x, Node) for x in node.args):
        return
    if any(shape_of(x) != shape_of(node) or not _is_float(x) for x in node.args):
        return
    for term, other in (node.args, node.args[::-1]):
        steps = []
        while is_call(term, PERMUTE, RESHAPE) and len(term.users) == 1:
            steps.append(term)
            term = term.args[0]
        is_convolution = is_call(term, onednn._convolution_pointwise.default)
        if not is_convolution and not is_call(term, onednn._linear_pointwise.default):
            continue
        plain, activation = term.args[:-3], term.args[-3:]
        if activation != NOTHING or len(term.users) != 1:
            continue
        x, *rest = plain
        done = None
        if is_convolution:
            (activation, *_), after = _activation_after(node)
            done = after if activation == "relu" else None  # the only one that it does after sums
            operator, more = onednn._convolution_pointwise, ["add", 1.0, done and "relu", [], None]
        else:
            operator, more = onednn._linear_pointwise, ["add"]
        with graph.inserting_before(node):
            for step in steps:
                other = _undone(graph, step, other)
            y = graph.call_function(operator.binary, (x, other, *rest, *more))
            y.meta = term.meta
            for step in reversed(steps):
                y = _again(graph, step, y)
        if done:
            _replace(done, done.args[0])
        _replace(node, y)
        for unused in (*steps, term):
            graph.erase_node(unused)
        return


def _undone(graph, step, x):
    """Of a step between layouts, what takes `x` back."""
    if step.target is PERMUTE:
        axes = step.args[1]
        arguments = (x, [axes.index(axis) for axis in range(len(axes))])
        y = graph.call_function(PERMUTE, arguments)
    else:
        y = graph.call_function(RESHAPE, (x, list(shape_of(step.args[0]))))
    y.meta = step.args[0].meta
    return y


def _again(graph, step, x):
    y = graph.call_function(step.target, (x, *step.args[1:]))
    y.meta = step.meta
    return y


def _drop_pairs_of_permutations(graph):
    for node in list(graph.nodes):
        if is_call(node, PERMUTE) and is_call(node.args[0], PERMUTE):
            x, first = node.args[0].args
            if [first[axis] for axis in node.args[1]] == list(range(len(first))):
                _replace(node, x)
    graph.eliminate_dead_code()


def _put(graph, node, target, arguments, *done):
    """A new operation in the place of an old one, and of those after it that it does as well;
    layouts between them stay."""
    with graph.inserting_before(node):
        new = graph.call_function(target, arguments)
    new.meta = node.meta
    for also in filter(None, done):
        _replace(also, also.args[0])
    _replace(node, new)


def _activation_after(node):
    """As oneDNN names it, and the operation; nothing, and `None`, if there is none."""
    user = _user_behind_layouts(node)
    if user is None:
        return NOTHING, None
    target, limits = user.target, user.args[1:]
    if target in ACTIVATIONS:
        return (ACTIVATIONS[target], [], ""), user
    if target is aten.gelu.default:
        return ("gelu", [], user.kwargs.get("approximate", "none")), user
    has_limits = len(limits) == 2 and all(isinstance(limit, int | float) for limit in limits)
    if has_limits and target in (aten.clamp.default, aten.hardtanh.default):
        return ("hardtanh", [float(limit) for limit in limits], ""), user
    return NOTHING, None


def _bias_after(module, node, features, axes=None):
    """The vector that is added to the last axis of a node, and the addition.

    Args:
        features: their number.
        axes: the permutation that brings them to the last axis, else they are there.
    """
    permutations, user = [], node
    while len(user.users) == 1:
        (user,) = user.users
        if is_call(user, PERMUTE):
            permutations.append(user.args[1])
        elif not is_call(user, RESHAPE) or axes:
            break
    if not is_call(user, aten.add.Tensor) or user.kwargs or permutations != [axes] * bool(axes):
        return None, None
    y, bias = user.args
    if not isinstance(bias, Node) or bias.op != "get_attr":
        return None, None
    # Keras has axes of one before it.
    fits = shape_of(bias) == (1,) * (len(shape_of(bias)) - 1) + (features,)
    if not fits or shape_of(y) != shape_of(user) or shape_of(y)[-1] != features:
        return None, None
    return _constant(module, node, _value(module, bias).reshape(features)), user


def _user_behind_layouts(node):
    """The only one."""
    while len(node.users) == 1:
        (node,) = node.users
        if not is_call(node, PERMUTE, RESHAPE):
            return node
    return None


def _constant(module, node, value):
    """A new constant before a node."""
    name = f"_constant{sum(1 for _ in module.buffers())}"
    module.register_buffer(name, value.detach())
    with module.graph.inserting_before(node):
        return module.graph.get_attr(name)


def _replace(node, new):
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _are_constants(*nodes):
    return all(node is None or node.op == "get_attr" for node in nodes)


def _value(module, node):
    return getattr(module, node.target).detach()


def _is_float(node):
    return node.meta["tensor_meta"].dtype == torch.float32
