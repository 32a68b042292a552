"""Attention in recorded operations of PyTorch: its own kernel, which keeps no map of weights."""

from __future__ import annotations

import math

import torch
from torch.fx import Graph, Node

from keras_convnets.graph._recorded import is_call, shape_of

aten = torch.ops.aten
LAYOUTS = (aten.reshape.default, aten.expand.default, aten.clone.default)


def use_attention(graph: Graph) -> bool:
    """Replaces softmax(q k + b) v, over the last axis, by one operation where nothing else uses
    what is between; tells whether it found any."""
    found = [
        softmax
        for softmax in list(graph.nodes)
        if is_call(softmax, aten._softmax.default) and _replace(graph, softmax)
    ]
    graph.eliminate_dead_code()
    return bool(found)


def _replace(graph, softmax):
    shape = shape_of(softmax)
    scores, axis = softmax.args[:2]
    if len(shape) not in (3, 4) or axis not in (-1, len(shape) - 1):
        return False
    bias = None
    if is_call(scores, aten.add.Tensor) and len(scores.users) == 1 and not scores.kwargs:
        scores, bias = scores.args
        if not isinstance(bias, Node):
            return False
    product = _behind_layouts(scores, aten.bmm.default)
    weighted = _user_behind_layouts(softmax)
    if product is None or weighted is None:
        return False
    if _behind_layouts(weighted.args[0], aten._softmax.default) is not softmax:
        return False
    queries, keys, values = *product.args, weighted.args[1]
    *images, rows, columns = shape
    heads, width = (*images, 1)[:2], shape_of(queries)[-1]
    count = math.prod(heads)
    if shape_of(product) != (count, rows, columns) or shape_of(values) != (count, columns, width):
        return False
    with graph.inserting_before(weighted):
        q = _by_heads(graph, queries, (*heads, rows, width))
        k = _by_heads(graph, keys, (*heads, width, columns))
        v = _by_heads(graph, values, (*heads, columns, width))
        k = graph.call_function(aten.transpose.int, (k, 2, 3))
        if bias is not None:
            b = (1,) * (len(shape) - len(shape_of(bias))) + shape_of(bias)
            b = b if len(shape) == 4 else (b[0], 1, *b[1:])
            bias = graph.call_function(aten.reshape.default, (bias, b))
        y = graph.call_function(
            aten.scaled_dot_product_attention.default, (q, k, v, bias), {"scale": 1.0}
        )
        merged = graph.call_function(aten.reshape.default, (y, shape_of(weighted)))
    found = weighted.meta["tensor_meta"]
    merged.meta = weighted.meta
    y.meta = {"tensor_meta": found._replace(shape=torch.Size((*heads, rows, width)))}
    for user in list(weighted.users):
        if is_call(user, *LAYOUTS) and shape_of(user) == (*heads, rows, width):
            user.replace_all_uses_with(y)
    weighted.replace_all_uses_with(merged)
    return True


def _by_heads(graph, x, shape):
    """A factor of a product as it was before heads and images became one axis."""
    source = x
    while is_call(source, *LAYOUTS) and shape_of(source) != shape:
        source = source.args[0]
    if shape_of(source) == shape:
        return source
    return graph.call_function(aten.reshape.default, (x, shape))


def _behind_layouts(node, target):
    """The operation of this kind that a node is a view of, used for nothing else."""
    while is_call(node, *LAYOUTS) and len(node.users) == 1:
        node = node.args[0]
    return node if is_call(node, target) and len(node.users) == 1 else None


def _user_behind_layouts(node):
    while len(node.users) == 1:
        (node,) = node.users
        if not is_call(node, *LAYOUTS):
            return node if is_call(node, aten.bmm.default) else None
    return None
