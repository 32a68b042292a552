"""Models as flat graphs of leaf layers, and the passes over them."""

from keras_convnets.graph.count import count
from keras_convnets.graph.flatten import flatten

__all__ = ["count", "flatten"]
