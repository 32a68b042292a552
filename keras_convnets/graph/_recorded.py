"""Operations of PyTorch, recorded: what they are and the shapes of what they give."""

from torch.fx import Node


def is_call(node, *targets) -> bool:
    """Whether a node, or an argument that may be none, is one of these operations."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def shape_of(node: Node) -> tuple[int, ...]:
    """As `ShapeProp` found it."""
    return tuple(node.meta["tensor_meta"].shape)
