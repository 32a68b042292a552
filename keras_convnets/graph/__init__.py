"""Models as flat graphs of leaf layers, and the passes over them."""

from keras_convnets.graph.count import count
from keras_convnets.graph.flatten import flatten
from keras_convnets.graph.fold import fold_batchnorm
from keras_convnets.graph.fuse import FusedModel, fuse
from keras_convnets.graph.lower import lower
from keras_convnets.graph.padding import fold_padding
from keras_convnets.graph.reparameterize import reparameterize
from keras_convnets.graph.rewrite import graph_nodes, rewrite
from keras_convnets.graph.targets import targets

__all__ = [
    "count",
    "flatten",
    "fold_batchnorm",
    "fold_padding",
    "FusedModel",
    "fuse",
    "graph_nodes",
    "lower",
    "reparameterize",
    "rewrite",
    "targets",
]
