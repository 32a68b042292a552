"""The flat form of a model: one Functional graph of leaf layers and `keras.ops`."""

from __future__ import annotations

import keras

from keras_convnets.graph.rewrite import rewrite


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
    return rewrite(model, lambda operation, node: None)
